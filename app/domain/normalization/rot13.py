"""Stretches of text in rot13, the alphabet turned by thirteen.

Knows nothing about other ciphers.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Final

from app.domain.normalization.lexicon import WORDS
from app.domain.normalization.view import Edit

_TURNED: Final = frozenset(codecs.encode(word, "rot13") for word in WORDS) - WORDS
_ENGLISH: Final = WORDS - frozenset(codecs.encode(word, "rot13") for word in WORDS)
_WORD: Final = re.compile(r"[^\W\d_]+")
_ENOUGH: Final = 2  # different English words that must come out, one of them not tiny
_TINY: Final = 2


def rot13(text: str) -> Iterator[Edit]:
    """Turn each stretch that holds no English but would; the words around it stay."""
    if _TURNED.isdisjoint(text.lower().split()):
        return
    start, end = 0, 0
    hits: set[str] = set()
    for match in _WORD.finditer(text):
        word = match[0].lower()
        if word not in _ENGLISH:
            hits |= {word} & _TURNED
            end = match.end()
            continue
        if _convincing(hits):
            yield start, end, codecs.encode(text[start:end], "rot13")
        start, hits = match.end(), set()
    if _convincing(hits):
        yield start, end, codecs.encode(text[start:end], "rot13")


def _convincing(hits: set[str]) -> bool:
    return len(hits) >= _ENOUGH and max(map(len, hits)) > _TINY
