"""When streamed text may leave: it waits for a window that contains it to be judged.

Knows nothing about detectors, clocks or wire formats: text is pushed, windows come out to be
judged elsewhere, judged windows release text. Windows lie at fixed places of the text, so every
way of splitting it into deltas gives the same windows (but for `partial` ones).

    pushed text   ────────────────────────────────────────►
    window k      [s ········· window ········· e)
    released by k ····················b)←overlap→

A phrase of at most `overlap` that starts before `b` ends before `e`, so it lay whole inside a
judged window before any of it left.

Sizes count letters and digits; other visible characters weigh a sixteenth, invisible ones nothing.
A phrase stretched with filler (`b-o-m-b`, zero-width characters) is therefore hardly longer.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.detection import Detection
from app.domain.policy import StreamMode, StreamPolicy
from app.domain.redaction import merged

_LETTER: Final = 16
_FILLER: Final = 1
_INVISIBLE: Final = frozenset({"Cf", "Mn", "Me"})
_SENTENCE_END: Final = re.compile(
    r"""[.!?\u2026]["'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f]|(?=\n)"""
)
_WORD_END: Final = re.compile(r"(?<=\S)(?=\s)")


def _weight(character: str) -> int:
    if character.isalnum():
        return _LETTER
    return 0 if unicodedata.category(character) in _INVISIBLE else _FILLER


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch `[start, end)` of a channel's text that is to be judged next."""

    text: str
    start: int
    end: int
    final: bool


class StreamModerator:
    """Holds back one channel of a stream: one field of one choice.

    Not safe for several tasks at once. Windows are judged in the order they are handed out, one at
    a time; after a window that blocks, the moderator is simply no longer used.
    """

    def __init__(self, policy: StreamPolicy) -> None:
        self._policy = policy
        self._hold = policy.mode is StreamMode.HOLD
        self._pieces: list[str] = []
        self._weights = array("Q")  # cumulated weight up to and with each character
        self._released = 0  # offset up to which text has left
        self._judged = 0  # offset up to which text was judged
        self._target = policy.first_window_chars * _LETTER  # weight that completes a window
        self._finished = False
        self._closed = False
        self.windows_judged = 0

    @property
    def held_chars(self) -> int:
        """Characters that wait."""
        return len(self._weights) - self._released

    @property
    def unjudged_chars(self) -> int:
        """Characters that no judged window contains yet."""
        return len(self._weights) - self._judged

    @property
    def released_chars(self) -> int:
        """Characters of the original text that have left, redacted ones included."""
        return self._released

    @property
    def overflowing(self) -> bool:
        """Whether more waits than the policy's buffer holds."""
        return self._hold and self.held_chars > self._policy.buffer_chars

    def whole(self) -> str:
        """Everything pushed so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def push(self, delta: str) -> str:
        """Take the next piece of text; returns what may leave at once (nothing in hold mode)."""
        self._pieces.append(delta)
        total = self._weights[-1] if self._weights else 0
        for character in delta:
            total += _weight(character)
            self._weights.append(total)
        if self._hold:
            return ""
        self._released = len(self._weights)
        return delta

    def finish(self) -> None:
        """No more text will come: the rest becomes the final window."""
        self._finished = True

    def next_window(self, *, partial: bool = False) -> Window | None:
        """The next stretch to judge, or None when there is none yet.

        Args:
            partial: Do not wait for a complete window if judging what is there releases something.
        """
        if self._closed or not self._weights:
            return None
        if self._weights[-1] >= self._target:
            return self._window(bisect_left(self._weights, self._target) + 1, final=False)
        if self._finished:
            return self._window(len(self._weights), final=True)
        end = len(self._weights)
        if partial and end > self._judged and self._boundary(end) > self._released:
            return self._window(end, final=False)
        return None

    def judged(self, window: Window, redactions: Sequence[Detection] = ()) -> str:
        """Note that `window` passed; returns the text that may leave now.

        Args:
            window: What `next_window` returned last.
            redactions: Detections in `window.text` whose text must be replaced.
        """
        self.windows_judged += 1
        self._judged = window.end
        self._closed = window.final
        step = self._policy.window_chars - self._policy.overlap_chars
        self._target = self._weights[window.end - 1] + step * _LETTER
        if not self._hold:
            return ""
        boundary = window.end if window.final else self._boundary(window.end)
        spans = [(window.start + s, window.start + e, name) for s, e, name in merged(redactions)]
        return self._release(max(boundary, self._released), spans, window)

    def rewind(self) -> str:
        """Take back what did not pass; returns what is left, for other text to follow.

        That is all that has left, and of what was judged besides as much as ends with a sentence,
        or at least with a word. It stays held until it is judged together with what follows.
        """
        judged = self.whole()[: self._judged]
        ends: list[int] = []
        for pattern in (_SENTENCE_END, _WORD_END):
            ends = ends or [m.end() for m in pattern.finditer(judged) if m.end() > self._released]
        end = ends[-1] if ends else self._released
        self._pieces = [judged[:end]]
        del self._weights[end:]
        self._judged = end
        step = self._policy.window_chars - self._policy.overlap_chars
        self._target = (self._weights[-1] if end else 0) + step * _LETTER
        self._finished = False
        return self.whole()

    def _window(self, end: int, *, final: bool) -> Window:
        oldest = self._weights[end - 1] - self._policy.window_chars * _LETTER
        start = bisect_right(self._weights, oldest) if oldest >= 0 else 0
        start = min(start, self._released if self._hold else self._judged)
        return Window(self.whole()[start:end], start, end, final)

    def _boundary(self, end: int) -> int:
        """Where release stops after a window that ends at `end`: an overlap before it."""
        keep = self._weights[end - 1] - self._policy.overlap_chars * _LETTER
        return bisect_right(self._weights, keep) if keep >= 0 else 0

    def _release(self, boundary: int, spans: list[tuple[int, int, str]], window: Window) -> str:
        """Text from what has left up to `boundary`, with `spans` replaced.

        A span across the boundary leaves whole, as its replacement; one that touches the end of the
        window may still grow, so it stays.
        """
        for start, end, _ in spans:
            if start < boundary < end:
                grows = end == window.end and not window.final
                boundary = max(start, self._released) if grows else end
        text, position = self.whole(), self._released
        pieces: list[str] = []
        for start, end, name in spans:
            if start >= boundary or end <= position:
                continue
            if start >= position:
                pieces += (text[position:start], name)
            position = end
        if position < boundary:
            pieces.append(text[position:boundary])
        self._released = max(boundary, position)
        return "".join(pieces)
