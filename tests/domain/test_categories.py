from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.categories import (
    HAZARD_CODES,
    OPENAI_CATEGORIES,
    OPENAI_EXTRA,
    Category,
    openai_scores,
)

OPENAI_NAMES = {
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
}
scores = st.dictionaries(st.sampled_from(Category), st.floats(0, 1))


def test_names_are_fit_for_labels_and_files() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", category) for category in Category)


def test_hazard_codes_are_complete_and_in_the_order_of_the_standard() -> None:
    assert list(HAZARD_CODES) == [f"S{number}" for number in range(1, 15)]
    assert len(set(HAZARD_CODES.values())) == 14
    assert HAZARD_CODES["S1"] is Category.VIOLENT_CRIMES
    assert HAZARD_CODES["S4"] is Category.CHILD_EXPLOITATION
    assert HAZARD_CODES["S9"] is Category.INDISCRIMINATE_WEAPONS
    assert HAZARD_CODES["S14"] is Category.CODE_ABUSE


def test_openai_names_are_exactly_theirs() -> None:
    assert set(OPENAI_CATEGORIES) == OPENAI_NAMES


def test_no_category_is_lost_in_translation() -> None:
    reachable = {
        category for groups in OPENAI_CATEGORIES.values() for group in groups for category in group
    }
    assert reachable.isdisjoint(OPENAI_EXTRA)
    assert reachable | set(OPENAI_EXTRA) == set(Category)


def test_no_openai_name_is_taken_by_an_extra_category() -> None:
    assert OPENAI_NAMES.isdisjoint(category.value for category in OPENAI_EXTRA)


@pytest.mark.parametrize(
    ("given_scores", "name", "expected"),
    [
        ({Category.HATE: 0.9}, "hate", 0.9),
        ({Category.HATE: 0.9}, "hate/threatening", 0.0),
        ({Category.HATE: 0.9, Category.THREAT: 0.4}, "hate/threatening", 0.4),
        ({Category.THREAT: 0.4}, "violence", 0.4),
        ({Category.VIOLENCE: 0.2, Category.THREAT: 0.4}, "violence", 0.4),
        ({Category.VIOLENCE: 0.2, Category.THREAT: 0.4}, "violence/graphic", 0.2),
        ({Category.CODE_ABUSE: 0.7}, "illicit", 0.7),
        ({Category.CODE_ABUSE: 0.7}, "illicit/violent", 0.0),
        ({Category.INDISCRIMINATE_WEAPONS: 0.8}, "illicit/violent", 0.8),
        ({Category.CHILD_EXPLOITATION: 0.6}, "sexual/minors", 0.6),
        ({Category.SEX_CRIMES: 0.6}, "sexual", 0.6),
        ({Category.JAILBREAK: 0.5}, "jailbreak", 0.5),
    ],
)
def test_translation(given_scores: dict[Category, float], name: str, expected: float) -> None:
    assert openai_scores(given_scores)[name] == expected


@given(scores)
def test_every_name_is_always_there_with_a_score_that_some_detector_gave(
    given_scores: dict[Category, float],
) -> None:
    translated = openai_scores(given_scores)
    assert set(translated) == OPENAI_NAMES | {category.value for category in OPENAI_EXTRA}
    assert set(translated.values()) <= {0.0, *given_scores.values()}


@given(scores)
def test_the_highest_score_is_seen_in_the_translation(given_scores: dict[Category, float]) -> None:
    assert max(openai_scores(given_scores).values()) == max(given_scores.values(), default=0.0)
