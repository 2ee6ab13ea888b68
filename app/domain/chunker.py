"""What a detector reads at once of something longer: windows with overlap, or both ends.

Knows nothing about tokens or models; text that arrives in pieces is `moderation/stream.py`'s.
"""

from __future__ import annotations

from typing import TypeVar

_Sequence = TypeVar("_Sequence", str, list[int])


def windows(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Spans of at most `size` that cover `length` units, the last one ending there.

    Any stretch of up to `overlap` units lies inside one window. Only the last window may be shorter
    than `size`; no units, no windows.

    Raises:
        ValueError: `overlap` leaves no room to move on, or a number is negative.
    """
    if length < 0 or not 0 <= overlap < size:
        raise ValueError("needs 0 <= length and 0 <= overlap < size")
    spans: list[tuple[int, int]] = []
    start = 0
    while start + size < length:
        spans.append((start, start + size))
        start += size - overlap
    return [*spans, (start, length)] if length else spans


def both_ends(sequence: _Sequence, limit: int) -> _Sequence:
    """At most `limit` units: the first half and the last half of what is longer."""
    if len(sequence) <= limit:
        return sequence
    last = limit // 2
    return sequence[: limit - last] + sequence[len(sequence) - last :]
