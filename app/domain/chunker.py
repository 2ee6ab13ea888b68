"""Windows with overlap over texts that are longer than a detector reads at once.

Knows nothing about tokens or models; text that arrives in pieces is `moderation/stream.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_LAST_SPACE: Final = re.compile(r"\s\S*\Z")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A window of a text: `text` stands at `start` to `end` of it, in code points."""

    text: str
    start: int
    end: int


def windows(length: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `size` that cover `length` units, the last one ending there.

    Any stretch of up to `overlap` units lies inside one window. Only the last window may be shorter
    than `size`; no units, no windows.

    Raises:
        ValueError: `overlap` leaves no room to move on, or a number is negative.
    """
    _check(length, size, overlap)
    return _windows(length, size, overlap)


def _windows(length: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start + size < length:
        yield start, start + size
        start += size - overlap
    if length:
        yield start, length


def chunks(text: str, size: int, overlap: int) -> Iterator[Chunk]:
    """Windows over `text` in code points, cut at white space where there is some near the end.

    The promises of `windows` hold, but for the shorter windows: a cut moves back by at most
    half of the room that the overlap leaves.

    Raises:
        ValueError: As for `windows`.
    """
    _check(len(text), size, overlap)
    return _chunks(text, size, overlap)


def _chunks(text: str, size: int, overlap: int) -> Iterator[Chunk]:
    start = 0
    while start + size < len(text):
        end = _cut(text, start + size, (size - overlap) // 2)
        yield Chunk(text[start:end], start, end)
        start = end - overlap  # any later would break the promise
    if text:
        yield Chunk(text[start:], start, len(text))


def _cut(text: str, end: int, slack: int) -> int:
    """The last place beside white space within `slack` characters before `end`, or `end`."""
    if text[end].isspace():
        return end
    space = _LAST_SPACE.search(text, end - slack, end)
    return space.start() + 1 if space else end


def _check(length: int, size: int, overlap: int) -> None:
    if length < 0 or overlap < 0 or size <= overlap:
        raise ValueError(f"no windows: length {length}, size {size}, overlap {overlap}")
