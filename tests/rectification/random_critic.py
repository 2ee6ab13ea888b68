"""A critic of random weights with every kind of sharing: heads, keys, several blocks."""

from dataclasses import replace

import torch

from app.rectification.critic_model import Critic, CriticShape

SHAPE = CriticShape(
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    intermediate=48,
    vocabulary=50,
    rank=6,
    rope_theta=10_000.0,
    norm_epsilon=1e-5,
    context=512,
)


def random_critic(**changes):
    generator = torch.Generator().manual_seed(3)
    critic = Critic(replace(SHAPE, **changes))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return critic.eval()


def alone(critic, token_ids):
    """Values of every next token after a text that is read at once, (vocabulary,)."""
    with torch.no_grad():
        hidden = critic.read(torch.tensor([token_ids]), torch.arange(len(token_ids))[None])
        return critic.q_values(hidden[0, -1])
