"""What control costs: tokens per second with it and without, and the critic read in two ways.

Knows nothing about toxicity. What is compared takes turns, so that a busy machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import torch

from app.rectification.critic_model import Critic
from app.rectification.critic_rows import CriticRows
from app.training.evaluation.rectification.arms import Arm
from app.training.evaluation.rectification.reader import Reader, Tokens
from app.training.evaluation.rectification.rollouts import Writers
from app.training.evaluation.rectification.sampler import Ask, write

PREFIX: Final = 256
"""Tokens that stand before the one that is timed."""
BATCHES: Final = (1, 8)
"""Texts that are written at once: one chat, and a busy server."""
_TOKENS: Final = 48


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second: medians over the rounds, and the median of each round's ratio."""

    texts_at_once: int
    without: float
    with_control: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Prefix:
    """Milliseconds of the critic for one more token of a text."""

    tokens: int
    incremental_ms: float
    whole_prefix_ms: float
    ratio: float


def rates(
    writers: Writers, arm: Arm, prompts: Sequence[Tokens], *, rounds: int, done: Callable[[], None]
) -> list[Rate]:
    """Write the same amount with an arm and without, `rounds` times in turns."""
    plain = Arm("none")
    found = []
    for at_once in BATCHES:
        pairs = []
        for number in range(rounds + 1):
            prompt = prompts[number % len(prompts)]
            pair = [_rate(writers, each, prompt, at_once, number) for each in (plain, arm)]
            done()
            if number:  # the first round warms up
                pairs.append(pair)
        found.append(
            Rate(
                at_once,
                round(median(without for without, _ in pairs), 2),
                round(median(steered for _, steered in pairs), 2),
                round(median(steered / without for without, steered in pairs), 4),
            )
        )
    return found


def rounds_of(rounds: int) -> int:
    """How often `rates` calls `done`."""
    return len(BATCHES) * (rounds + 1)


@torch.inference_mode()
def prefix(critic: Critic, *, rounds: int, length: int = PREFIX) -> Prefix:
    """Values after one more token: by what was read before, and by reading everything again.

    The second is the published way, and is spared the values of the other places of the text.
    """
    chance = torch.Generator().manual_seed(length)
    text = torch.randint(critic.shape.vocabulary, (length + rounds + 1,), generator=chance).tolist()
    rows = CriticRows(critic)
    rows.q_values({0: text[:length]})
    times: list[tuple[float, float]] = []
    for end in range(length + 1, len(text) + 1):
        some = text[:end]
        begun = time.perf_counter()
        rows.q_values({0: some})
        between = time.perf_counter()
        hidden = critic.read(torch.tensor([some]), torch.arange(end)[None])
        critic.q_values(hidden[:, -1])
        times.append((between - begun, time.perf_counter() - between))
    kept = times[1:]  # the first one warms up
    return Prefix(
        length,
        round(median(ours for ours, _ in kept) * 1e3, 3),
        round(median(whole for _, whole in kept) * 1e3, 3),
        round(median(whole / ours for ours, whole in kept), 2),
    )


def _rate(writers: Writers, arm: Arm, prompt: Tokens, at_once: int, seed: int) -> float:
    ask = Ask(samples=at_once, tokens=_TOKENS, seed=seed)
    written, seconds = write(
        Reader(writers.model), writers.method(arm), [prompt], ask, gauges=False
    )
    return sum(len(each.token_ids) for each in written) / seconds
