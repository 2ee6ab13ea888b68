"""Writers small enough for a test: a random language model and a random critic."""

import torch

from app.generation.chatml import load_tokenizer
from app.generation.llama import Llama
from app.rectification.critic_model import Critic, CriticShape
from app.training.critic.texts import Layout
from app.training.evaluation.rectification.rollouts import Writers


def tiny_critic(vocabulary):
    """Its values differ from token to token and lie anywhere between 0 and -1."""
    shape = CriticShape(
        layers=1,
        hidden=16,
        heads=2,
        kv_heads=1,
        intermediate=24,
        vocabulary=vocabulary,
        rank=4,
        rope_theta=10_000.0,
        norm_epsilon=1e-5,
        context=512,
    )
    torch.manual_seed(0)
    critic = Critic(shape)
    with torch.no_grad():
        critic.state_direction.weight.normal_(std=2.0)
    return critic.eval()


def tiny_writers(folder):
    model = Llama.load(folder)
    layout = Layout(load_tokenizer(folder))
    critic = tiny_critic(model.shape.vocabulary)
    words = [list(layout.tokens(word)) for word in ("kill", " kill")]
    return Writers(model, critic, layout, words, {"critic": "tiny"})


def every_score(model, token_ids):
    """The scores after the last of these tokens, read at once: (vocabulary,)."""
    cache = model.empty_cache()
    cache.reserve(1, len(token_ids))
    positions = torch.arange(len(token_ids))[None]
    return model.forward(torch.tensor([list(token_ids)]), positions, cache)[0]
