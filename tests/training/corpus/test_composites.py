"""Burying texts: they stay whole, stand anywhere, and the whole keeps to its length."""

import random

import pytest

from app.training.corpus.composites import bury

_FILLERS = (
    "The train was late again.",
    "We had soup for lunch, and then a long walk by the river.",
)
_TEXT = "here stands the buried text"


def _many(count: int = 600, max_words: int = 60) -> list[str]:
    chance = random.Random(5)
    return [bury(_TEXT, _FILLERS, chance, max_words=max_words) for _ in range(count)]


def test_the_text_stays_whole_among_fillers():
    for buried in _many():
        assert buried.count(_TEXT) == 1
        assert any(filler.split()[0] in buried for filler in _FILLERS)


def test_it_stands_at_the_start_in_the_middle_and_at_the_end():
    made = [buried for buried in _many() if "\n" not in buried]
    assert any(buried.startswith(_TEXT) for buried in made)
    assert any(buried.endswith(_TEXT) for buried in made)
    assert any(not buried.startswith(_TEXT) and not buried.endswith(_TEXT) for buried in made)


def test_every_layout_occurs():
    made = _many()
    assert any("\n" not in buried for buried in made)
    assert any(buried.startswith("- ") for buried in made)
    for label in ("1. ", "2. ", "User: ", "Assistant: "):
        assert any(f"{label}{_TEXT}" in buried for buried in made), label


def test_the_same_seed_buries_alike_and_another_does_not():
    assert _many() == _many()
    assert bury(_TEXT, _FILLERS, random.Random(1), max_words=60) != bury(
        _TEXT, _FILLERS, random.Random(2), max_words=60
    )


@pytest.mark.parametrize("max_words", [13, 20, 200])
def test_only_labels_of_a_layout_come_on_top_of_the_words(max_words):
    lengths = []
    for buried in _many(max_words=max_words):
        labels = buried.count("\n") + 1
        lengths.append(len(buried.split()))
        assert lengths[-1] <= max_words + labels
    assert max(lengths) > 12


def test_no_filler_is_said_twice():
    for buried in _many(max_words=500):
        assert all(buried.count(filler.split(".")[0]) <= 1 for filler in _FILLERS)


def test_a_text_without_room_or_fillers_comes_back_as_it_is():
    chance = random.Random(1)
    assert bury(_TEXT, _FILLERS, chance, max_words=5) == _TEXT
    assert bury(_TEXT, (), chance, max_words=60) == _TEXT
