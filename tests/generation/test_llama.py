from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from app.generation.llama import Llama


def test_scores_equal_those_of_transformers(tiny: Llama, reference: LlamaForCausalLM) -> None:
    prompt = torch.arange(3, 43)[None]
    cache = tiny.empty_cache()
    cache.reserve(1, 40)

    with torch.inference_mode():
        scores = tiny.forward(prompt, torch.arange(40)[None], cache)
        expected = reference(prompt).logits[:, -1]

    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_read_in_pieces_gives_the_same_scores(tiny: Llama) -> None:
    prompt = torch.arange(3, 43)[None]
    whole, pieces = tiny.empty_cache(), tiny.empty_cache()
    whole.reserve(1, 40)

    with torch.inference_mode():
        expected = tiny.forward(prompt, torch.arange(40)[None], whole)
        for start, end in ((0, 16), (16, 17), (17, 40)):
            pieces.reserve(1, end)
            scores = tiny.forward(prompt[:, start:end], torch.arange(start, end)[None], pieces)

    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_a_head_of_its_own_is_used(tiny: Llama, reference: LlamaForCausalLM) -> None:
    weights = dict(reference.state_dict())
    untied = Llama(tiny.shape, weights | {"lm_head.weight": weights["lm_head.weight"] * 2})
    caches = tiny.empty_cache(), untied.empty_cache()
    token, position = torch.tensor([[5]]), torch.tensor([[0]])
    for cache in caches:
        cache.reserve(1, 1)

    with torch.inference_mode():
        tied_scores = tiny.forward(token, position, caches[0])
        scores = untied.forward(token, position, caches[1])

    torch.testing.assert_close(scores, tied_scores * 2)
