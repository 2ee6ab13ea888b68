import numpy as np
import pytest
import torch

from app.generation.llama import Llama, LlamaShape
from app.training.prompt_detector.embeddings import EmbeddingCache
from app.training.toxicdetector.embeddings import embed, last_states

PROMPTS = [(1, 2, 3, 9), (1, 2, 3, 8), (1, 2, 3, 4, 5, 6), (1, 2, 3, 7, 5, 6)]


@pytest.fixture(scope="module")
def model():
    """A tiny Llama with random weights."""
    shape = LlamaShape(
        layers=3,
        hidden=16,
        heads=4,
        kv_heads=2,
        context=64,
        vocabulary=20,
        rope_theta=10_000.0,
        norm_epsilon=1e-5,
    )
    torch.manual_seed(5)
    weights = {
        "model.embed_tokens.weight": torch.randn(20, 16),
        "model.norm.weight": torch.ones(16),
    }
    sizes = {
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (24, 16),
        "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24),
    }
    for layer in range(shape.layers):
        for name, size in sizes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = torch.randn(size) * 0.3
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = torch.ones(16)
    return Llama(shape, weights)


def one_by_one(model, prompt):
    states = []
    cache = model.empty_cache()
    cache.reserve(1, len(prompt))
    with torch.inference_mode():
        model.forward(torch.tensor([prompt]), torch.arange(len(prompt))[None], cache, states)
    return torch.stack(states, dim=1)[0].numpy()


def test_prompts_read_together_equal_prompts_read_alone(model):
    with torch.inference_mode():
        together = last_states(model, PROMPTS)
    assert together.shape == (4, 3, 16)
    for prompt, states in zip(PROMPTS, together, strict=True):
        np.testing.assert_allclose(states, one_by_one(model, prompt), atol=2e-2, rtol=2e-3)


def test_the_last_state_gives_the_scores(model):
    prompt = PROMPTS[0]
    cache = model.empty_cache()
    cache.reserve(1, len(prompt))
    states = []
    with torch.inference_mode():
        scores = model.forward(
            torch.tensor([prompt]), torch.arange(len(prompt))[None], cache, states
        )
        torch.testing.assert_close(model.scores(states[-1]), scores)


def test_a_run_that_was_stopped_goes_on_where_it_was(model, tmp_path):
    loaded = []

    def load():
        loaded.append(1)
        return model

    first = embed(PROMPTS[:2], cache=EmbeddingCache(tmp_path), load=load)
    rest = embed(PROMPTS, cache=EmbeddingCache(tmp_path), load=load)
    again = embed(PROMPTS, cache=EmbeddingCache(tmp_path), load=load)
    assert len(loaded) == 2  # nothing was missing the third time
    np.testing.assert_array_equal(rest[:2], first)
    np.testing.assert_array_equal(again, rest)
