"""Labelled stretches of a text, how patterns find them, and which of two overlapping ones wins.

Knows nothing about what the patterns look for.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

# One call of a C function holds every thread up, so patterns search a long text in stretches.
_STRETCH: Final = 50_000
_LOOKAHEAD: Final = 1_000


class PiiLabel(StrEnum):
    """What was found. The most telling first: of two overlapping spans the earlier label wins."""

    PRIVATE_KEY = "private_key"
    API_KEY = "api_key"
    TOKEN = "token"  # noqa: S105 - the name of a label
    PASSWORD = "password"  # noqa: S105 - the name of a label
    EMAIL = "email"
    IBAN = "iban"
    CARD = "card"
    SSN = "ssn"
    PHONE = "phone"


_RANK: Final = {label: rank for rank, label in enumerate(PiiLabel)}


class Span(NamedTuple):
    """`text[start:end]` is one of these."""

    start: int
    end: int
    label: PiiLabel


def matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """As `pattern.finditer(text)`, in bounded steps. The pattern must not match nothing."""
    position = 0
    while position < len(text):
        edge = position + _STRETCH
        match = pattern.search(text, position, edge + _LOOKAHEAD)
        if match is None or match.start() >= edge:
            position = edge
            continue
        if match.end() == edge + _LOOKAHEAD:  # cut: there may be more of it
            match = pattern.match(text, match.start()) or match
        yield match
        position = match.end()


def occurrences(literal: str, text: str) -> Iterator[int]:
    """Where `literal` begins in `text`, in order."""
    position = text.find(literal)
    while position >= 0:
        yield position
        position = text.find(literal, position + 1)


def disjoint(spans: Iterable[Span]) -> list[Span]:
    """The spans that win over all they overlap, in order of place: first by label, then length."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (_RANK[span.label], span.start - span.end)):
        place = bisect(kept, span)
        free_before = place == 0 or kept[place - 1].end <= span.start
        if free_before and (place == len(kept) or kept[place].start >= span.end):
            kept.insert(place, span)
    return kept
