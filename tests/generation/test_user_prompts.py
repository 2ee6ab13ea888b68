from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer

from app.domain.detection import Gap, Unscanned
from app.generation.chatml import ChatMl, Turn
from app.generation.user_prompts import UserPrompts


@pytest.fixture
def prompts(tiny_tokenizer: Tokenizer) -> UserPrompts:
    return UserPrompts(tiny_tokenizer, window=10, overlap=3)


def test_a_short_text_is_the_prompt_of_a_chat(
    prompts: UserPrompts, tiny_tokenizer: Tokenizer
) -> None:
    text = "\n the cat"
    (only,), gaps = prompts.encode(text)

    assert only.token_ids == ChatMl(tiny_tokenizer).encode([Turn("user", text)])
    assert (only.start, only.end, gaps) == (0, len(text), ())


def test_a_long_text_is_covered_by_windows_that_overlap(
    prompts: UserPrompts, tiny_tokenizer: Tokenizer
) -> None:
    text = "the cat sat on the mat, quoth the räven; " * 5
    cuts, gaps = prompts.encode(text)

    assert len(cuts) > 2
    assert gaps == ()
    assert (cuts[0].start, cuts[-1].end) == (0, len(text))
    for cut, following in pairwise(cuts):
        assert cut.start < following.start < cut.end
    for cut in cuts:
        said = Turn("user", text[cut.start : cut.end])
        assert cut.token_ids == ChatMl(tiny_tokenizer).encode([said])


def test_no_text_no_prompt(prompts: UserPrompts) -> None:
    assert prompts.encode("") == ([], ())


class Deaf:
    """Drops the letter z, as some vocabularies drop control characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.token_to_id = tokenizer.token_to_id

    def encode(self, text: str, **options: bool) -> SimpleNamespace:
        encoded = self._tokenizer.encode(text, **options)
        heard = zip(encoded.ids, encoded.offsets, strict=True)
        kept = [(token, span) for token, span in heard if "z" not in text[slice(*span)]]
        return SimpleNamespace(ids=[each[0] for each in kept], offsets=[each[1] for each in kept])


def test_what_the_vocabulary_lacks_is_a_gap(tiny_tokenizer: Tokenizer) -> None:
    _, gaps = UserPrompts(Deaf(tiny_tokenizer), window=50, overlap=3).encode("abzz c zd  ")

    assert gaps == (
        Gap(2, 4, Unscanned.UNKNOWN_TOKEN),
        Gap(7, 8, Unscanned.UNKNOWN_TOKEN),
    )
