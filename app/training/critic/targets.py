"""What every token of a finished text is taught: its return, or what comes after it.

Knows nothing about where texts come from. A critic answers with -Q, the probability that the
finished text is unsafe; r = -p is the reward of a text with risk p, given at its end.

Both ways have the same fixed point where the texts are the language model's own, as rewards are
neither discounted nor given on the way:

- **Monte Carlo**: every token gets the return of its text. Unbiased, and no second network. The
  loss is the cross-entropy of the logit against the soft return, not a squared error: both are
  least at the expected return, but through the sigmoid the gradient of a squared error vanishes
  exactly where the critic is wrong and sure, and an error of 0.02 costs the same at a risk of 0.5
  as at one of 0.01, where it triples what a cap takes away.
- **SARSA**, as published: a token gets the value of the next one by a slowly moving copy of the
  head, the last token gets the reward; squared error.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from app.rectification.critic_model import Critic

TargetName = Literal["mc", "sarsa"]

POLYAK: Final = 0.1
"""How far the copy of the head moves towards the head with every step."""
HEAD: Final = ("norm", "value", "state_direction", "token_direction")
"""The modules of a critic behind its blocks."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The states of a batch of texts, and what was said in each.

    Args:
        states: (rows, steps, hidden) what the critic left behind, in float32.
        actions: (rows, steps) the token that came next.
        judged: (rows, steps) whether that token counts; the counting ones have no gaps.
        risks: (rows,) of the finished texts.
    """

    states: Tensor
    actions: Tensor
    judged: Tensor
    risks: Tensor


class Targets(Protocol):
    """A way to learn values."""

    def loss(self, steps: Steps) -> Tensor:
        """Mean over the judged tokens."""

    def moved(self) -> None:
        """The optimiser has changed the critic."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the critic."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a state."""


class MonteCarlo:
    """Every token gets the return of its finished text."""

    def __init__(self, critic: Critic) -> None:
        self._critic = critic

    def loss(self, steps: Steps) -> Tensor:
        """Cross-entropy against the soft return."""
        logits = self._critic.logits_of(steps.states, steps.actions)[steps.judged]
        returns = steps.risks[:, None].expand(steps.judged.shape)[steps.judged]
        return functional.binary_cross_entropy_with_logits(logits, returns)

    def moved(self) -> None:
        """Nothing follows the critic."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take."""


class Sarsa:
    """A token gets what the next one is worth to a copy of the head on the same blocks.

    The copy moves by Polyak averaging. Unlike in the published code the prompt does not count, as
    with Monte Carlo: its tokens are nobody's choice.
    """

    def __init__(self, critic: Critic) -> None:
        self._critic = critic
        with torch.device("meta"):
            head = Critic(replace(critic.shape, layers=0))
        head.embed_tokens = critic.embed_tokens  # shared: it never changes
        for name in HEAD:
            setattr(head, name, copy.deepcopy(getattr(critic, name)))
        self._head = head.requires_grad_(requires_grad=False)

    def loss(self, steps: Steps) -> Tensor:
        """Squared error against the next value."""
        values = self._critic.q_of(steps.states, steps.actions)
        with torch.no_grad():
            copied = self._head.q_of(steps.states, steps.actions)
            goals = sarsa_goals(copied, steps.judged, steps.risks)
        return functional.mse_loss(values[steps.judged], goals[steps.judged])

    @torch.no_grad()
    def moved(self) -> None:
        """Let the copy follow."""
        for name in HEAD:
            fixed, moving = getattr(self._head, name), getattr(self._critic, name)
            for mine, theirs in zip(fixed.parameters(), moving.parameters(), strict=True):
                mine.lerp_(theirs, POLYAK)

    def state(self) -> dict[str, Tensor]:
        """The weights of the copy."""
        return {
            name: weight
            for name, weight in self._head.state_dict().items()
            if not name.startswith("embed_tokens")
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give the copy these weights."""
        self._head.load_state_dict(state, strict=False)


def sarsa_goals(values: Tensor, judged: Tensor, risks: Tensor) -> Tensor:
    """The goal of every step: the value of the next one, at the last judged one the reward.

    Args:
        values: (rows, steps) Q of the tokens that came next, by the slow head.
        judged: (rows, steps)
        risks: (rows,)
    """
    after = torch.cat((values[:, 1:], values[:, -1:]), dim=1).clamp(-1.0, 0.0)
    follows = torch.cat((judged[:, 1:], judged.new_zeros(len(judged), 1)), dim=1)
    return torch.where(follows, after, -risks[:, None])


def targets_of(name: TargetName, critic: Critic) -> Targets:
    """The way with this name."""
    return MonteCarlo(critic) if name == "mc" else Sarsa(critic)
