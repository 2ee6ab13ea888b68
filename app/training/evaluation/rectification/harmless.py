"""Whether ordinary answers stay as they are: greedy decoding with a gated control and without.

Knows nothing about who asks. Both texts are the same as long as the control leaves every best token
the best one along the plain text, so one pass over the plain text answers for every control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from app.rectification.critic_rows import CriticRows
from app.rectification.sampling import Sampling
from app.rectification.steering import Control, steer
from app.training.critic.rollouts import STOPS
from app.training.evaluation.rectification.reader import Reader
from app.training.evaluation.rectification.rollouts import Writers

ROWS: Final = 16
"""Answers that are written at once."""
_GREEDY: Final = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Answers that a control left as they were, and the part of the steps that it changed."""

    answers: int
    unchanged: float
    changed_steps: float


@dataclass(slots=True)
class _Count:
    changed: set[int] = field(default_factory=set)  # numbers of instructions
    changed_steps: int = 0
    steps: int = 0


@torch.inference_mode()
def harmless(
    writers: Writers,
    instructions: Sequence[str],
    controls: Mapping[str, Control],
    *,
    tokens: int,
    done: Callable[[], None],
) -> dict[str, Unchanged]:
    """Answer each instruction in at most `tokens`; what each control would have changed."""
    counts = {name: _Count() for name in controls}
    for start in range(0, len(instructions), ROWS):
        numbers = range(start, min(start + ROWS, len(instructions)))
        texts = {number: list(writers.layout.chat(instructions[number])) for number in numbers}
        _answer(writers, texts, controls, counts, tokens)
        done()
    return {
        name: Unchanged(
            answers=len(instructions),
            unchanged=round(1 - len(count.changed) / len(instructions), 4),
            changed_steps=round(count.changed_steps / count.steps, 4),
        )
        for name, count in counts.items()
    }


def _answer(
    writers: Writers,
    texts: dict[int, list[int]],
    controls: Mapping[str, Control],
    counts: Mapping[str, _Count],
    tokens: int,
) -> None:
    """Answer a batch of instructions, by their numbers."""
    reader, values_of = Reader(writers.model), CriticRows(writers.critic)
    rows = {number: row for row, number in enumerate(texts)}
    logits = reader.begin(list(texts.values()))
    alive = list(texts)
    for _ in range(tokens):
        scores = logits[[rows[number] for number in alive]]
        values = values_of.q_values({number: texts[number] for number in alive})
        best = scores.argmax(-1)
        for name, control in controls.items():
            steered = steer(scores, values, [control] * len(alive), [_GREEDY] * len(alive))
            other = (steered.log_probs.argmax(-1) != best) | steered.dead_ends
            count = counts[name]
            count.changed |= {alive[at] for at in other.nonzero().squeeze(1).tolist()}
            count.changed_steps += int(steered.changed.sum())
            count.steps += len(alive)
        for number, token in zip(alive, best.tolist(), strict=True):
            texts[number].append(token)
        alive = [number for number in alive if texts[number][-1] not in STOPS]
        if not alive:
            return
        logits = reader.newest(list(texts.values()))
