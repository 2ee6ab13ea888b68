"""A reading of a text, with the way back: every code point knows where it came from.

Knows nothing about how a reading is found; that is `normalize.py` and the files it names.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

Edit = tuple[int, int, str]
"""Replace `text[start:end]` by a string. Edits of one text are in order and do not overlap."""


class ViewName(StrEnum):
    """How the text was read (a closed set: it is a metric label)."""

    PLAIN = "plain"
    LEET = "leet"
    SPACED = "spaced"
    BASE64 = "base64"
    HEX = "hex"
    ESCAPED = "escaped"  # percent-encoding, HTML entities, \u escapes
    ROT13 = "rot13"


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a text.

    `origin` holds, for each code point of `text`, where its source starts and ends in the original
    text; both arrays never decrease. None means that `text` is the original.
    """

    name: ViewName
    text: str = field(repr=False)
    origin: tuple[array[int], array[int]] | None = field(default=None, repr=False)

    def to_original(self, start: int, end: int) -> tuple[int, int]:
        """The smallest span of the original text that encloses `text[start:end]`."""
        if self.origin is None:
            return start, end
        starts, ends = self.origin
        if start < end:
            return starts[start], ends[end - 1]
        point = starts[start] if start < len(starts) else ends[-1] if ends else 0
        return point, point


def rewrite(view: View, edits: Iterable[Edit], name: ViewName | None = None) -> View:
    """Apply `edits` to the text of `view`; without any, the result is `view` itself.

    A replacement as long as what it replaces is taken character by character; in any other,
    each character comes from the whole of what was replaced.
    """
    pieces: list[str] = []
    starts, ends = array("I"), array("I")

    def keep(start: int, end: int) -> None:
        if view.origin is None:
            starts.extend(range(start, end))
            ends.extend(range(start + 1, end + 1))
        else:
            starts.extend(view.origin[0][start:end])
            ends.extend(view.origin[1][start:end])

    done = 0
    for start, end, replacement in edits:
        pieces += (view.text[done:start], replacement)
        keep(done, start)
        if len(replacement) == end - start:
            keep(start, end)
        elif replacement:
            first, last = view.to_original(start, end)
            starts.extend([first] * len(replacement))
            ends.extend([last] * len(replacement))
        done = end
    if not pieces:
        return view
    pieces.append(view.text[done:])
    keep(done, len(view.text))
    return View(name or view.name, "".join(pieces), (starts, ends))
