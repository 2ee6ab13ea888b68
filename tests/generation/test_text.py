from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from app.domain.errors import ConfigurationError
from app.generation.text import TextAssembler, Vocabulary


def assembled(pieces: list[bytes], stop: tuple[str, ...] = ()) -> str:
    assembler = TextAssembler(stop)
    return "".join([assembler.push(piece) for piece in pieces] + [assembler.flush()])


def split(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_any_splitting_of_the_bytes_gives_the_same_text(text: str, cuts: list[int]) -> None:
    assert assembled(split(text.encode(), cuts)) == text


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30)),
)
def test_any_splitting_ends_at_the_same_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    first_end = min(
        (text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text) + 1
    )
    matched = [stop for stop in stops if text[:first_end].endswith(stop) and stop in text]
    length = first_end - max(map(len, matched)) if matched else len(text)

    assert assembled(split(text.encode(), cuts), tuple(stops)) == text[:length]


def test_half_a_character_waits_for_its_other_half() -> None:
    assembler = TextAssembler()
    euro = "€".encode()

    assert assembler.push(b"5 " + euro[:1]) == "5 "
    assert assembler.push(euro[1:2]) == ""
    assert assembler.push(euro[2:] + b"!") == "€!"


def test_half_a_character_at_the_end_is_dropped() -> None:
    assert assembled([b"caf", "é".encode()[:1]]) == "caf"


def test_text_that_could_begin_a_stop_string_is_held() -> None:
    assembler = TextAssembler(("\nUser:",))

    assert assembler.push(b"Yes.\nUs") == "Yes."
    assert assembler.push(b"e it") == "\nUse it"
    assert assembler.push(b"\nUser") == ""
    assert assembler.push(b": hello") == ""
    assert assembler.stopped
    assert assembler.push(b"more") == ""
    assert assembler.flush() == ""


def test_held_text_leaves_at_the_end() -> None:
    assert assembled([b"one ", b"tw"], ("two",)) == "one tw"


def test_a_vocabulary_knows_the_bytes_of_its_tokens(tiny_tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tiny_tokenizer)
    text = "the cat\n\x00 naïve — 猫🐈"

    assert b"".join(vocabulary[i] for i in tiny_tokenizer.encode(text).ids) == text.encode()


def test_special_tokens_have_no_text(tiny_tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tiny_tokenizer)

    assert [vocabulary[token_id] for token_id in range(3)] == [b"", b"", b""]


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Vocabulary(Tokenizer(models.WordLevel({"猫": 0}, unk_token="猫")))
