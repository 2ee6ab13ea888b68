"""Spaced-out letters: `b o m b`, `k.i.l.l`, `g - u - n`.

Knows nothing about other spelling tricks, but that a letter may be a leet sign.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from app.domain.normalization.leet import unleet
from app.domain.normalization.lexicon import WORDS
from app.domain.normalization.view import Edit

_RUN: Final = re.compile(
    r"(?<![^\W_])(?:[^\W_]|[@$])(?:[\s._*~·•-]{1,3}(?:[^\W_]|[@$])(?![^\W_])){2,}"
)
_SINGLE: Final = re.compile(r"[^\W_]|[@$]")
# Encoding to ASCII leaves `?` where letters of other alphabets may have been.
_LETTERS: Final = f"{string.ascii_letters}{string.digits}@$?".encode()
_SHAPE: Final = bytes(b"x"[0] if code in _LETTERS else b" "[0] for code in range(256))
_CANDIDATE: Final = re.compile(rb" x {1,3}x {1,3}x ")
_SHORTEST: Final = 3
_PARTS: Final = WORDS | {"a", "i"}
_LONGEST_WORD: Final = max(map(len, WORDS))


def spaced(text: str) -> list[Edit]:
    """Edits that join runs of at least three single letters into words."""
    shape = text.encode("ascii", "replace").translate(_SHAPE)
    if not _CANDIDATE.search(b" " + shape + b" "):
        return []
    return [edit for run in _RUN.finditer(text) for edit in _joined(run[0], run.start())]


def _joined(run: str, offset: int) -> Iterator[Edit]:
    """Join the letters of one run; its wider gaps, if any, are the spaces between words."""
    words = _split(run)
    if _is_acronym(run, words):
        return
    readings = [_read("".join([run[at] for at in word])) for word in words]
    if max(map(len, readings)) < _SHORTEST:
        return
    for word, reading, following in zip(words, readings, [*words[1:], None], strict=True):
        breaks = _breaks(reading.lower())
        for number, (at, letter) in enumerate(zip(word, reading, strict=False), start=1):
            if letter != run[at]:
                yield offset + at, offset + at + 1, letter
            if number < len(word):
                between = " " if number in breaks else ""
                yield offset + at + 1, offset + word[number], between
        if following:
            yield offset + word[-1] + 1, offset + following[0], " "


def _read(letters: str) -> str:
    """The word, or nothing where these are no letters."""
    return letters if letters.isalpha() else unleet(letters) or ""


def _split(run: str) -> list[list[int]]:
    """Group the letters (by their places in `run`) into words."""
    at = [match.start() for match in _SINGLE.finditer(run)]
    gaps = [run[i + 1 : j] for i, j in pairwise(at)]
    narrow = min(map(len, gaps))
    blank_is_wide = any(not gap.isspace() for gap in gaps)
    words = [[at[0]]]
    for gap, place in zip(gaps, at[1:], strict=True):
        if len(gap) > narrow or (blank_is_wide and gap.isspace()):
            words.append([])
        words[-1].append(place)
    return words


def _is_acronym(run: str, words: list[list[int]]) -> bool:
    """`U.S.A` is written so on purpose."""
    return len(words) == 1 and len(words[0]) == _SHORTEST and "." in run and run.isupper()


def _breaks(letters: str) -> set[int]:
    """Where to part letters that spell several words of the lexicon; the fewest words win."""
    if letters in WORDS:
        return set()
    # fewest[i]: how many words spell letters[:i], and where the last of them starts
    fewest: list[tuple[int, int] | None] = [(0, 0)]
    for end in range(1, len(letters) + 1):
        best: tuple[int, int] | None = None
        for start in range(max(0, end - _LONGEST_WORD), end):
            known = fewest[start]
            if known and (not best or known[0] + 1 < best[0]) and letters[start:end] in _PARTS:
                best = (known[0] + 1, start)
        fewest.append(best)
    found: set[int] = set()
    end = len(letters)
    while end and (known := fewest[end]):
        end = known[1]
        found.add(end)
    return found
