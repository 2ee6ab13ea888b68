"""Writes continuations of a batch of prompts under one method, and measures each step.

Knows nothing about which method it is, nor about words. The gauges do not count as time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from app.rectification.dead_ends import DeadEnds
from app.rectification.rectify import log_probs_of, mass_moved
from app.training.critic.rollouts import STOPS
from app.training.evaluation.rectification.methods import Method, Moved, nucleus
from app.training.evaluation.rectification.reader import Reader, Tokens

_SAME: Final = 1e-6
"""Two distributions that are no farther apart differ by rounding."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How each prompt is continued. `rollback` tokens of a text may be taken back in all."""

    samples: int
    tokens: int
    seed: int
    rollback: int = 8


@dataclass(frozen=True, slots=True)
class Written:
    """One continuation, and the sums of its steps, those included that were taken back.

    Attributes:
        token_ids: What somebody would read, the end token included.
        nll: Of these tokens under the unmodified model, in nats.
        steps: Tokens that were chosen.
        kl: From the model's whole distribution to what was drawn from, in nats.
        changed: Steps that the control changed.
        over: How far tokens were above their caps at worst, summed over the steps.
        worst: The largest of these.
        dead_ends: How often no distribution obeyed the caps.
        taken_back: Tokens.
        refused: Whether the text was given up.
    """

    token_ids: list[int]
    nll: float
    steps: int
    kl: float
    changed: int
    over: float
    worst: float
    dead_ends: int
    taken_back: int
    refused: bool


@dataclass(slots=True)
class _Row:
    first: int
    text: list[int]
    way: DeadEnds
    nll: list[float] = field(default_factory=list)
    done: bool = False
    steps: int = 0
    kl: float = 0.0
    changed: int = 0
    over: float = 0.0
    worst: float = 0.0
    dead_ends: int = 0
    taken_back: int = 0
    refused: bool = False

    @property
    def new(self) -> list[int]:
        return self.text[self.first :]

    def written(self) -> Written:
        return Written(
            self.new,
            sum(self.nll),
            self.steps,
            self.kl,
            self.changed,
            self.over,
            self.worst,
            self.dead_ends,
            self.taken_back,
            self.refused,
        )


@torch.inference_mode()
def write(
    reader: Reader, method: Method, prompts: Sequence[Tokens], ask: Ask, *, gauges: bool = True
) -> tuple[list[Written], float]:
    """`ask.samples` continuations of each prompt, in order, and the seconds they took.

    Args:
        reader: The language model, fresh.
        method: The control, fresh.
        prompts: Token ids.
        ask: How many and how long; the same one gives the same texts.
        gauges: Whether steps are measured; likelihoods always are.
    """
    begins = [list(prompt) for prompt in prompts for _ in range(ask.samples)]
    rows = [_Row(len(begin), list(begin), DeadEnds(ask.rollback)) for begin in begins]
    texts = [row.text for row in rows]
    chance = torch.Generator().manual_seed(ask.seed)
    begun = time.perf_counter()
    logits = reader.begin(begins)
    method.begin(begins)
    seconds = time.perf_counter() - begun
    while True:
        whole = log_probs_of(logits)
        begun = time.perf_counter()
        moved = method.moved(_without_excluded(logits, rows), texts)
        drawn = torch.multinomial(moved.log_probs.exp(), 1, generator=chance)
        seconds += time.perf_counter() - begun
        if gauges:
            _measure(rows, logits, whole, moved)
        _advance(rows, drawn, whole, moved, ask)
        if all(row.done for row in rows):
            return [row.written() for row in rows], seconds
        begun = time.perf_counter()
        logits = reader.newest(texts)
        seconds += time.perf_counter() - begun


def _without_excluded(logits: Tensor, rows: Sequence[_Row]) -> Tensor:
    """The scores without what led to a dead end from here."""
    met = [index for index, row in enumerate(rows) if row.dead_ends]
    logits = logits.clone() if met else logits
    for index in met:
        excluded = rows[index].way.excluded(len(rows[index].nll))
        logits[index, [*excluded]] = -torch.inf
    return logits


def _measure(rows: Sequence[_Row], logits: Tensor, whole: Tensor, moved: Moved) -> None:
    """Add one step to the gauges; a dead end is none, as nothing is drawn."""
    # From the very same numbers as a method has: rounding could move the edge of the nucleus.
    apart = mass_moved(nucleus(logits), moved.log_probs).tolist()
    drawn = moved.log_probs.exp()
    kl = torch.where(drawn > 0, drawn * (moved.log_probs - whole), 0).sum(-1).tolist()
    violations = moved.violations()
    over = [0.0] * len(rows) if violations is None else violations.tolist()
    for row, far, nats, above, stuck in zip(rows, apart, kl, over, _dead(moved), strict=True):
        if not (row.done or stuck):
            row.kl += nats
            row.changed += far > _SAME
            row.over += above
            row.worst = max(row.worst, above)


def _advance(rows: Sequence[_Row], drawn: Tensor, whole: Tensor, moved: Moved, ask: Ask) -> None:
    """Add a token to each row that goes on, or take some back."""
    costs = (-whole.gather(1, drawn)).squeeze(1).tolist()
    tokens = drawn.squeeze(1).tolist()
    for row, token, cost, stuck in zip(rows, tokens, costs, _dead(moved), strict=True):
        if row.done:
            continue
        if stuck:
            _turn_back(row, ask.rollback)
            continue
        row.steps += 1
        row.text.append(token)
        row.nll.append(cost)
        row.done = token in STOPS or len(row.nll) >= ask.tokens


def _dead(moved: Moved) -> list[bool]:
    found: list[bool] = (
        [False] * len(moved.log_probs) if moved.dead_ends is None else moved.dead_ends.tolist()
    )
    return found


def _turn_back(row: _Row, held: int) -> None:
    """Take back what led to a dead end; if that cannot be, what was held never leaves."""
    row.dead_ends += 1
    tokens = row.way.retreat(row.new)
    if tokens is None:
        row.refused = row.done = True
        tokens = min(held, len(row.nll))
    else:
        row.taken_back += tokens
    if tokens:
        del row.text[-tokens:]
        del row.nll[-tokens:]
