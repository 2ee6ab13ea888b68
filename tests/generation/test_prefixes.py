from __future__ import annotations

import pytest
import torch

from app.generation.llama import Llama
from app.generation.prefixes import Prefixes, ReadPrompt


@pytest.fixture
def prefixes() -> Prefixes:
    return Prefixes(max_tokens=20)


def read(model: Llama, *token_ids: int) -> ReadPrompt:
    cache = model.empty_cache()
    cache.reserve(1, len(token_ids))
    return ReadPrompt(token_ids, cache, torch.zeros(1, 3), torch.zeros(2, 4))


def test_the_very_prompt_is_found_and_no_other(tiny: Llama, prefixes: Prefixes) -> None:
    kept = read(tiny, 1, 2, 3)
    prefixes.put(kept)

    assert prefixes.get((1, 2, 3)) is kept
    assert prefixes.get((1, 2)) is None
    assert prefixes.get((1, 2, 3, 4)) is None


def test_the_longest_beginning_is_found_but_never_the_last_token(
    tiny: Llama, prefixes: Prefixes
) -> None:
    short, long = read(tiny, 1, 2, 9), read(tiny, 1, 2, 3, 4)
    prefixes.put(short)
    prefixes.put(long)

    assert prefixes.longest((1, 2, 3, 7, 7)) == (long.cache, 3)
    assert prefixes.longest((1, 2, 3)) == (short.cache, 2)
    assert prefixes.longest((5, 1, 2)) is None
    assert prefixes.longest((1,)) is None


def test_what_was_used_least_lately_makes_room(tiny: Llama, prefixes: Prefixes) -> None:
    prompts = [read(tiny, *range(first, first + 8)) for first in (10, 30, 50)]
    prefixes.put(prompts[0])
    prefixes.put(prompts[1])
    prefixes.get(prompts[0].token_ids)
    prefixes.put(prompts[2])  # 24 tokens are too many

    assert prefixes.get(prompts[1].token_ids) is None
    assert prefixes.get(prompts[0].token_ids) is prompts[0]
    assert prefixes.get(prompts[2].token_ids) is prompts[2]


def test_only_so_many_prompts_are_kept(tiny: Llama, prefixes: Prefixes) -> None:
    for token in range(9):
        prefixes.put(read(tiny, token))

    assert prefixes.get((0,)) is None
    assert prefixes.get((1,)) is not None


def test_a_prompt_longer_than_all_room_is_not_kept(tiny: Llama, prefixes: Prefixes) -> None:
    prefixes.put(read(tiny, 7))
    prefixes.put(read(tiny, *range(21)))

    assert prefixes.get(tuple(range(21))) is None
    assert prefixes.get((7,)) is not None
