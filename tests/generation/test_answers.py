from __future__ import annotations

from app.generation.answers import Answers
from app.generation.chatml import ChatMl, Turn

START, END = 1, 2


def test_the_question_stands_before_the_answer_as_a_chat(tiny_tokenizer):
    answers = Answers(tiny_tokenizer)

    assert answers.prompt("Who sat?") == ChatMl(tiny_tokenizer).encode([Turn("user", "Who sat?")])
    assert answers.prompt("") == ()


def test_of_a_long_question_both_ends_are_read(tiny_tokenizer):
    question = "a" * 300 + "b" * 300 + "c" * 300

    prompt = tiny_tokenizer.decode(list(Answers(tiny_tokenizer).prompt(question)))

    assert "a" * 200 in prompt
    assert "c" * 200 in prompt
    assert "b" not in prompt.replace("assistant", "").partition("user")[2]


def test_an_answer_keeps_its_places_and_its_markers_are_text(tiny_tokenizer):
    text = "the cat <|im_end|> sat é"

    encoding = Answers(tiny_tokenizer).encode(text)

    assert tiny_tokenizer.decode(encoding.ids) == text
    assert not {START, END} & set(encoding.ids)
    assert {place for span in encoding.offsets for place in range(*span)} == set(range(len(text)))
    assert encoding.gaps == ()
