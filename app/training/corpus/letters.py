"""Disguises of letters and words: look-alikes, signs, gaps, typing errors, case.

Knows nothing about labels or about whole texts. The same `chance` gives the same disguise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Final

_WORD: Final = re.compile(r"[^\W\d_]+")
_LONG: Final = 4  # letters; shorter words are rarely what a disguise is for
# A letter and what stands for it.
_LOOK_ALIKES: Final = (
    "a\u0430\u0251 c\u0441\u03f2 d\u0501 e\u0435\u04bd g\u0261 h\u04bb i\u0456\u0131 "
    "j\u0458 k\u043a\u03ba l\u04cf\u217c m\u043c\u217f n\u0578 o\u043e\u03bf p\u0440\u03c1 "
    "s\u0455 t\u0442 u\u03c5\u057d v\u03bd w\u051d x\u0445 y\u0443 A\u0410\u0391 "
    "B\u0412\u0392 C\u0421 E\u0415\u0395 H\u041d\u0397 I\u0406\u0399 K\u041a\u039a "
    "M\u041c\u039c O\u041e\u039f P\u0420\u03a1 S\u0405 T\u0422\u03a4 X\u0425\u03a7"
)
_LEET: Final = "a4@ b8 e3 g9 i1! l1| o0 s5$ t7"
_ACCENTS: Final = (
    "a\u00e1\u00e0\u00e2\u00e4 c\u00e7 e\u00e9\u00e8\u00ea\u00eb "
    "i\u00ed\u00ec\u00ee\u00ef n\u00f1 o\u00f3\u00f2\u00f4\u00f6 "
    "u\u00fa\u00f9\u00fb\u00fc y\u00fd\u00ff"
)
_INVISIBLE: Final = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_SEPARATORS: Final = ".-_*~"


def homoglyphs(text: str, chance: random.Random) -> str:
    """Letters of other alphabets that look the same."""
    return _replaced(text, _LOOK_ALIKES, chance)


def leetspeak(text: str, chance: random.Random) -> str:
    """Digits and signs that stand for letters."""
    return _replaced(text, _LEET, chance)


def accents(text: str, chance: random.Random) -> str:
    """Letters with marks that the language does not use."""
    return _replaced(text, _ACCENTS, chance)


def zero_width(text: str, chance: random.Random) -> str:
    """Invisible characters between letters."""
    sign, rate = chance.choice(_INVISIBLE), chance.uniform(0.1, 0.6)
    return "".join(
        char + sign if char.isalpha() and chance.random() < rate else char for char in text
    )


def letter_spacing(text: str, chance: random.Random) -> str:
    """Spaces or signs between the letters of all words, or of some."""
    gap = chance.choice(" " + _SEPARATORS)
    if chance.random() < 1 / 3:
        between = "   " if gap == " " else " "
        return between.join(gap.join(word) for word in text.split())
    return changed_words(text, chance, gap.join)


def character_swaps(text: str, chance: random.Random) -> str:
    """Two neighbouring letters change places inside a word."""

    def swapped(word: str) -> str:
        at = chance.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return changed_words(text, chance, swapped)


def dropped_letters(text: str, chance: random.Random) -> str:
    """A letter inside a word is missing."""

    def dropped(word: str) -> str:
        at = chance.randrange(1, len(word))
        return word[:at] + word[at + 1 :]

    return changed_words(text, chance, dropped)


def doubled_letters(text: str, chance: random.Random) -> str:
    """A letter of a word is typed two to four times."""

    def doubled(word: str) -> str:
        at = chance.randrange(len(word))
        return word[:at] + word[at] * chance.randint(2, 4) + word[at + 1 :]

    return changed_words(text, chance, doubled)


def masked_letters(text: str, chance: random.Random) -> str:
    """A letter inside a word gives way to a sign, as in self-censored swearing."""

    def masked(word: str) -> str:
        at = chance.randrange(1, len(word) - 1)
        return word[:at] + chance.choice("**#-_") + word[at + 1 :]

    return changed_words(text, chance, masked)


def inner_punctuation(text: str, chance: random.Random) -> str:
    """A sign somewhere inside a word, nothing lost."""

    def broken(word: str) -> str:
        at = chance.randrange(1, len(word))
        return word[:at] + chance.choice(_SEPARATORS + " ") + word[at:]

    return changed_words(text, chance, broken)


def random_case(text: str, chance: random.Random) -> str:
    """Capitals everywhere, nowhere, by turns or by chance."""
    style = chance.choice(("upper", "lower", "turns", "chance"))
    if style == "upper":
        return text.upper()
    if style == "lower":
        return text.lower()
    first = chance.randrange(2)
    return "".join(
        char.upper() if (first + at if style == "turns" else chance.randrange(2)) % 2 else char
        for at, char in enumerate(text.lower())
    )


def no_spaces(text: str, chance: random.Random) -> str:
    """Words run together, or are joined by a sign."""
    words = text.split()
    if chance.random() < 1 / 3:
        return "".join(word[:1].upper() + word[1:] for word in words)
    return chance.choice(("", "_", "-", ".", "+")).join(words)


def _replaced(text: str, groups: str, chance: random.Random) -> str:
    table: Mapping[str, str] = {group[0]: group[1:] for group in groups.split()}
    rate = chance.uniform(0.15, 0.9)
    return "".join(
        chance.choice(table[char]) if char in table and chance.random() < rate else char
        for char in text
    )


def changed_words(text: str, chance: random.Random, change: Callable[[str], str]) -> str:
    """Change a share of the longer words, at least one of them."""
    words = [match for match in _WORD.finditer(text) if len(match[0]) >= _LONG]
    if not words:
        return text
    count = max(1, round(chance.uniform(0.15, 0.7) * len(words)))
    chosen = {match.start() for match in chance.sample(words, count)}
    return _WORD.sub(lambda match: change(match[0]) if match.start() in chosen else match[0], text)
