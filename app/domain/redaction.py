"""Replacing what was found, and only that, in a text.

Knows nothing about policies: the caller says which detections are to be redacted.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.domain.detection import Detection


def replacement(detection: Detection) -> str:
    """What stands in the place of a redacted stretch, such as `[EMAIL]`."""
    return f"[{(detection.label or detection.category.value).upper()}]"


def redact(text: str, detections: Iterable[Detection]) -> str:
    """`text` with each detection's `[start, end)` replaced; overlapping ones become one.

    Offsets are code points of `text`. The longest of the overlapping stretches gives the name.
    """
    pieces: list[str] = []
    position = 0
    for start, end, name in merged(detections):
        pieces += (text[position:start], name)
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def merged(detections: Iterable[Detection]) -> list[tuple[int, int, str]]:
    """Disjoint `(start, end, replacement)` in order; overlapping stretches are joined."""
    groups: list[tuple[int, int, Detection]] = []
    for detection in sorted(detections, key=lambda d: (d.start, -d.end)):
        if groups and detection.start < groups[-1][1]:
            start, end, longest = groups[-1]
            if detection.end - detection.start > longest.end - longest.start:
                longest = detection
            groups[-1] = (start, max(end, detection.end), longest)
        elif detection.end > detection.start:
            groups.append((detection.start, detection.end, detection))
    return [(start, end, replacement(detection)) for start, end, detection in groups]
