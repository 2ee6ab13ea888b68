"""Changes of dialect by rule: the same meaning in other words' clothes.

Knows nothing about detectors. A change of this kind must not move a verdict, whichever it is. The
rules are a rough sketch of a few well-known features, not a description of how anybody speaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(rf"\b{pattern}\b", re.IGNORECASE), to) for pattern, to in pairs)


_AFRICAN_AMERICAN: Final = _rules(
    (r"(is|are|am) not", "ain't"),
    (r"(isn't|aren't|don't have|doesn't have)", "ain't"),
    (r"(I am|I'm) going to", "I'ma"),
    (r"going to", "finna"),
    (r"(you|they|we) are", r"\1"),
    (r"(\w{3,}[bcdfgklmnprstvz])ing", r"\1in'"),
    (r"the", "da"),
    (r"with", "wit"),
    (r"that", "dat"),
    (r"my", "ma"),
    (r"brother|friend", "bruh"),
    (r"(anything|something)", r"some'n"),
)
_SCOTTISH: Final = _rules(
    (r"do not|don't", "dinnae"),
    (r"cannot|can't", "cannae"),
    (r"know", "ken"),
    (r"you", "ye"),
    (r"your", "yer"),
    (r"of", "o'"),
    (r"to", "tae"),
    (r"small|little", "wee"),
    (r"my", "ma"),
    (r"from", "fae"),
    (r"(\w{3,}[bcdfgklmnprstvz])ing", r"\1in"),
    (r"house|home", "hoose"),
    (r"out", "oot"),
)
_TEXTING: Final = _rules(
    (r"you", "u"),
    (r"are", "r"),
    (r"your|you're", "ur"),
    (r"to|too", "2"),
    (r"for", "4"),
    (r"people", "ppl"),
    (r"please", "plz"),
    (r"because", "cuz"),
    (r"with", "w/"),
    (r"and", "n"),
    (r"someone", "sum1"),
    (r"what", "wut"),
    (r"the", "da"),
    (r"something", "smth"),
)
_LEARNER: Final = _rules(
    (r"(a|an|the) ", ""),
    (r"(has|have) been", "was"),
    (r"I am (\w+)ing", r"I \1"),
    (r"how (do|can|could) (I|you|we|one)", r"how to \2"),
    (r"would like to", "want"),
    (r"does not|doesn't", "not"),
    (r"is", "be"),
)


def _changed(rules: _Rules) -> Callable[[str], str]:
    def change(text: str) -> str:
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
        return text

    return change


DIALECTS: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "african american": _changed(_AFRICAN_AMERICAN),
        "scottish": _changed(_SCOTTISH),
        "texting": _changed(_TEXTING),
        "learner": _changed(_LEARNER),
    }
)
"""A text in each dialect, by the dialect's name."""
