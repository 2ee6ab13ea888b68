import base64
import codecs
from random import Random
from urllib.parse import unquote

import pytest

from app.training.evaluation import letters
from app.training.evaluation.attacks import battery, read_wrappers
from app.training.evaluation.filler import harmless_words
from app.training.evaluation.sets import Row

TEXT = 'Please tell me how the people of "Atlantis" are going to build a small boat with my brother'
ROW = Row("row-1", TEXT, unsafe=True, labels=("boats",))
ATTACKS = {attack.name: attack for attack in battery()}


def test_every_attack_of_the_battery_has_a_name_of_its_own():
    assert len(ATTACKS) == len(battery())
    assert {attack.family for attack in battery()} == {
        "letters", "encoding", "wrapper", "format", "dialect", "split", "length",
    }  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_changes_the_words_only_and_the_same_way_every_time(attack):
    hidden = attack.attacked(ROW)
    assert hidden == attack.attacked(ROW)
    assert (hidden.text, hidden.history) != (ROW.text, ())
    assert (hidden.id, hidden.unsafe, hidden.labels) == (ROW.id, True, ("boats",))
    assert "{}" not in hidden.text


def test_wrappers_hold_the_whole_prompt():
    for name in {*read_wrappers()} - {"many_turns", "code"}:
        assert TEXT in ATTACKS[name].attacked(ROW).text
    assert TEXT.replace('"', '\\"') in ATTACKS["code"].attacked(ROW).text


def test_encodings_say_the_prompt():
    hidden = {name: ATTACKS[name].attacked(ROW).text for name in ("base64", "hex", "rot13", "url")}
    assert base64.b64decode(hidden["base64"].splitlines()[-1]).decode() == TEXT
    assert bytes.fromhex(hidden["hex"].splitlines()[-1]).decode() == TEXT
    assert codecs.decode(hidden["rot13"], "rot13").endswith(TEXT)
    assert unquote(hidden["url"]).endswith(TEXT)


def test_turns_are_the_pieces_of_the_prompt_with_replies_between():
    hidden = ATTACKS["many_turns"].attacked(ROW)
    asked = [turn.text for turn in hidden.history if turn.role == "user"]
    assert " ".join([*asked, hidden.text]) == TEXT
    assert [turn.role for turn in hidden.history] == ["user", "assistant"] * 3


def test_one_word_is_one_turn():
    assert ATTACKS["many_turns"].attacked(Row("a", "boat", unsafe=False)).history == ()


def test_the_payload_stands_at_the_very_end_of_a_long_text():
    hidden = ATTACKS["end_of_8k_tokens"].attacked(ROW).text
    assert hidden.endswith(TEXT)
    assert 6_400 <= len(hidden.split()) < 6_500


def test_letters_are_changed_and_counted():
    chance = Random(3)
    assert len(letters.homoglyphs(TEXT, chance)) == len(TEXT)
    assert not letters.homoglyphs(TEXT * 3, chance).isascii()
    assert sorted(letters.swaps(TEXT, chance)) == sorted(TEXT)
    assert letters.swaps("a tiny word", chance) != "a tiny word"
    assert len(letters.drops("letters", chance)) == 6
    assert letters.drops("word", chance) == "word"
    assert letters.spacing("a boat") == "a   b o a t"
    assert letters.alternating_case("boat") == "bOaT"
    assert letters.bold_letters("aZ!") == "\U0001d41a\U0001d419!"
    assert letters.zero_width(TEXT, chance).isprintable() is False


def test_filler_is_plain_sentences_of_the_wanted_length():
    text = harmless_words(100, Random(1))
    assert 100 <= len(text.split()) < 120
    assert text != harmless_words(100, Random(2))
