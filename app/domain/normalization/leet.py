"""Leetspeak: digits and signs that stand for letters (`h0w t0 m4k3 a b0mb`).

Knows nothing about what the words mean; the lexicon only settles doubtful ones.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Final

from app.domain.normalization.lexicon import WORDS
from app.domain.normalization.view import Edit

_SIGNS: Final = "01345789@$!|"  # 2 and 6 stand for no letter: most hashes hold one of them
_READINGS: Final = tuple(
    # 1 and | are i or l, and in k111 both: the first i, the rest l.
    str.maketrans(_SIGNS, f"o{one}eastbgasi{one}")
    for one in "il"
)
_SHAPE: Final = bytes.maketrans(
    f"{string.ascii_letters}{string.digits}@$!|".encode(), b"a" * 52 + b"0" * 14
)
_TOKEN: Final = re.compile(r"[A-Za-z0-9@$!|]+")
_MAIL: Final = re.compile(r"@[\w-]+\.\w")
_INNER: Final = re.compile(r"[a-z][01345789@$!]+[a-z]")
_NUMBER: Final = re.compile(r"\d{3}|(\d)(?!\1)\d")  # not the pairs of l33t and b00ze
# Identifiers, encoded bytes, and sentences with no space between (`Stop!Now`).
_NO_WORD: Final = re.compile(r"[a-z].*[A-Z]|![!A-Z]")
_NUMERAL: Final = re.compile(r"(?<!\S)\d{1,3}(?!\S)")
_SURE: Final = 2
_SHORTEST: Final = 3
_LONGEST: Final = 20
_VOWEL: Final = re.compile(r"[aeiouy]")


def leet(text: str) -> list[Edit]:
    """Edits that read the leetspeak of `text`; none unless a word of three letters comes out."""
    shape = text.encode("ascii", "replace").translate(_SHAPE)
    if b"a0" not in shape and b"0a" not in shape:
        return []
    edits = list(_words(text))
    long = sum(len(word) >= _SHORTEST for _, _, word in edits)
    if long >= _SURE:
        edits = sorted([*edits, *_numerals(text)])
    return edits if long else []


def _words(text: str) -> Iterator[Edit]:
    for chunk in re.finditer(r"\S+", text):
        if "://" in chunk[0] or _MAIL.search(chunk[0]):
            continue
        for token in _TOKEN.finditer(chunk[0]):
            word = unleet(token[0])
            if word is not None:
                start = chunk.start() + token.start()
                yield start, start + len(word), word


def _numerals(text: str) -> Iterator[Edit]:
    """Numbers that are short words (`70` for to, `4` for a): only among leetspeak."""
    for number in _NUMERAL.finditer(text):
        word = number[0].translate(_READINGS[0])
        if word in {"a", "i"} or word in WORDS:
            yield *number.span(), word


def unleet(token: str) -> str | None:
    """The word that `token` spells in leetspeak, or None; `!` at the end is punctuation.

    A word of the lexicon is always taken. Any other must look like a word and have its signs
    between letters: `mp3`, `utf8`, `4th`, `$12`, hashes and base64 stay what they are.
    """
    token = token.rstrip("!|")
    lower = token.lower()
    if not lower or lower.isalpha() or not any(map(str.isalpha, lower)):
        return None
    readings = [_restored(token, reading) for reading in _candidates(lower)]
    for reading in readings:
        if reading.lower() in WORDS:
            return reading
    letters = sum(map(str.isalpha, lower))
    wordlike = (
        _SHORTEST < len(token) < _LONGEST
        and letters * 2 >= len(token)
        and readings[0].isalpha()
        and _INNER.search(lower)
        and not _NUMBER.search(lower)
        and not _NO_WORD.search(token)
        and _VOWEL.search(readings[0].lower())
    )
    return readings[0] if wordlike else None


def _candidates(lower: str) -> Iterator[str]:
    for reading in _READINGS:
        yield lower.translate(reading)
    head, one, tail = lower.partition("1")
    yield (head + one).translate(_READINGS[0]) + tail.translate(_READINGS[1])


def _restored(token: str, reading: str) -> str:
    """Letters that were letters keep their case."""
    return "".join([old if old.isalpha() else new for old, new in zip(token, reading, strict=True)])
