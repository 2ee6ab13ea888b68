from __future__ import annotations

import itertools
import re

from app.detectors.spans import PiiLabel, Span, disjoint, matches


def test_a_match_longer_than_a_stretch_is_whole() -> None:
    text = "a" * 120_000 + " aaa"
    assert [m.span() for m in matches(re.compile("a+"), text)] == [(0, 120_000), (120_001, 120_004)]


def test_of_overlapping_spans_the_strongest_wins_and_frees_the_others() -> None:
    phone, card, key = (
        Span(0, 5, PiiLabel.PHONE),
        Span(3, 10, PiiLabel.CARD),
        Span(8, 12, PiiLabel.API_KEY),
    )
    for order in itertools.permutations((phone, card, key)):
        assert disjoint(order) == [phone, key]
    assert disjoint([Span(0, 5, PiiLabel.CARD), Span(0, 9, PiiLabel.CARD)]) == [(0, 9, "card")]
