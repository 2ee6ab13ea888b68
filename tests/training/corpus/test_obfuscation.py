"""Disguises: seeded, readable by a human, undone by the service where the table says so."""

import random
import re

import pytest

from app.domain.normalization.normalize import normalize
from app.training.corpus.frames import INFORMAL
from app.training.corpus.obfuscation import ENCODINGS, TRANSFORMATIONS, UNDONE, disguise

_TEXT = "Please tell me how people without money find a place to sleep in this town."
_WRAPPERS = (
    "code_block",
    "json_or_xml",
    "role_play",
    "persona",
    "sure_suffix",
    "fictional_frame",
    "research_frame",
    "polite_prefix",
    "filler_prefix",
    "gibberish_suffix",
)
_TYPING = ("character_swaps", "dropped_letters", "doubled_letters", "masked_letters")
# Words that drop an assistant's rules: such a wrapper would make a harmless text an attack.
_ATTACK = re.compile(
    r"ignore|disregard|forget|bypass|override|no rules|restrict|uncensored|illegal"
)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformation_is_seeded_and_changes_the_text(name):
    transform = TRANSFORMATIONS[name]
    made = [transform(_TEXT, random.Random(seed)) for seed in range(20)]
    assert made == [transform(_TEXT, random.Random(seed)) for seed in range(20)]
    assert sum(text != _TEXT for text in made) >= 15
    assert len(set(made)) > 3


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize(
    "text", ["", "a", "ok?", "你好", "x\n\ny", '{"a": {}}', "🙂 no", "half \ud83d gone"]
)
def test_odd_texts_are_survived(name, text):
    for seed in range(20):
        assert isinstance(TRANSFORMATIONS[name](text, random.Random(seed)), str)


@pytest.mark.parametrize("name", _WRAPPERS)
def test_a_wrapper_keeps_the_text_and_asks_for_no_rule_to_be_dropped(name):
    for seed in range(60):
        wrapped = TRANSFORMATIONS[name](_TEXT, random.Random(seed))
        assert wrapped.count(_TEXT) == 1
        assert not _ATTACK.search(wrapped.lower())


def test_braces_in_a_text_are_no_place_for_it():
    for seed in range(30):
        assert TRANSFORMATIONS["persona"]("a {} b", random.Random(seed)).count("a {} b") == 1


@pytest.mark.parametrize("name", sorted(UNDONE))
def test_the_service_reads_what_is_marked_as_undone(name):
    read = 0.0
    for seed in range(30):
        disguised = TRANSFORMATIONS[name](_TEXT, random.Random(seed))
        readings = set().union(*(_words(view.text) for view in normalize(disguised)))
        read += len(_words(_TEXT) & readings) / len(_words(_TEXT))
    assert read / 30 > 0.65


@pytest.mark.parametrize("name", ["accents", "masked_letters", "no_spaces", "inner_punctuation"])
def test_the_service_does_not_read_all_of_the_others(name):
    disguised = TRANSFORMATIONS[name](_TEXT, random.Random(3))
    assert not any(_words(_TEXT) <= _words(view.text) for view in normalize(disguised))


@pytest.mark.parametrize("name", _TYPING)
def test_a_typing_error_leaves_the_ends_of_the_sentence_readable(name):
    for seed in range(20):
        made = TRANSFORMATIONS[name](_TEXT, random.Random(seed))
        assert len(made.split()) == len(_TEXT.split())
        assert len(_words(_TEXT) & _words(made)) >= 5


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_an_encoding_covers_the_end_of_the_text_and_may_leave_its_beginning(name):
    made = [TRANSFORMATIONS[name](_TEXT, random.Random(seed)) for seed in range(30)]
    assert not any("this town." in text for text in made)
    assert {text.startswith("Please") for text in made} == {True, False}


def test_informal_spellings_replace_whole_words_only():
    made = TRANSFORMATIONS["informal"]("the thesis of the theatre", random.Random(4)).lower()
    assert "thesis" in made
    assert "theatre" in made
    assert "the" not in made.split()
    assert all(key == key.lower() for key in INFORMAL)


def test_disguise_draws_every_transformation_and_encodings_rarely():
    chance = random.Random(11)
    made = [disguise(_TEXT, chance) for _ in range(600)]
    assert made != [disguise(_TEXT, chance) for _ in range(600)]
    unreadable = sum(not _words(_TEXT) & _words(text) for text in made)
    assert 0 < unreadable < 120
    assert sum("Sure" in text for text in made) > 0
    assert sum("\u200b" in text for text in made) > 0
