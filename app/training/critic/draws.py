"""Which texts a step of training sees: rollouts before readings, unsafe ones more than there are.

Knows nothing about networks. Everything follows from the seed and the number of the chunk.

Few rollouts are unsafe. Think of a text with risk p as an unsafe one with weight p and a safe one
with weight 1 - p. Where unsafe weight is drawn r times as often, a text is drawn by r p + (1 - p),
it is unsafe with the probability r p / (r p + 1 - p) then, and at every prefix the odds of the
risk are r times the true ones. So log r is what the drawing adds to every logit, exactly, and what
has to be taken off again after training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.training.critic.texts import Text

UNSAFE: Final = 0.4
"""Share of the unsafe weight in what is drawn, of rollouts and of readings."""
MOST: Final = 8.0
"""Unsafe weight is drawn at most so many times as often: few texts must not be learnt by heart."""
ON_POLICY: Final = 0.7
"""Share of rollouts in what is drawn.

Only they show what follows from a prefix when the language model goes on; readings show the words
that it seldom uses.
"""

_CHUNK: Final = 2048


@dataclass(frozen=True, slots=True)
class Drawn:
    """A text as training sees it, and the risk that it has among the drawn ones."""

    text: Text
    risk: float


class Draws:
    """An endless stream of batches.

    Args:
        texts: The training texts.
        tokens: Most tokens of a batch, padding included.
        seed: Everything drawn follows from it.
    """

    def __init__(self, texts: Sequence[Text], *, tokens: int, seed: int) -> None:
        self._texts = texts
        self._tokens = tokens
        self._seed = seed
        risks = np.asarray([text.risk for text in texts], np.float64)
        rollouts = np.asarray([text.kind != "reading" for text in texts])
        self._risks = np.zeros_like(risks)
        self._chances = np.zeros_like(risks)
        self.shift = 0.0
        """What the drawing adds to the logits of rollouts.

        Readings have the same share of unsafe weight among the drawn, so taking off the shift
        gives them the odds of rollouts, which is what a text in service has.
        """
        for group, share in ((~rollouts, 1 - ON_POLICY), (rollouts, ON_POLICY)):
            if group.any():
                ratio = _ratio(risks[group])
                weights = ratio * risks[group] + (1 - risks[group])
                self._chances[group] = share * weights / weights.sum()
                self._risks[group] = ratio * risks[group] / weights
                self.shift = math.log(ratio)
        self._chances /= self._chances.sum()

    def steps(self, epochs: float) -> int:
        """Batches of so many passes; one draws as many texts as there are."""
        return max(1, round(epochs * len(self._texts) / self._chunk * len(self._batches(0))))

    def batches(self, skip: int = 0) -> Iterator[list[Drawn]]:
        """All batches from number `skip` on."""
        number = 0
        while True:
            made = self._batches(number)
            yield from made[skip:]
            skip = max(0, skip - len(made))
            number += 1

    @property
    def _chunk(self) -> int:
        return min(_CHUNK, len(self._texts))

    def _batches(self, number: int) -> list[list[Drawn]]:
        """One chunk in batches of similar length, in random order."""
        chance = np.random.default_rng([self._seed, number])
        drawn = self._drawn(chance)
        made: list[list[Drawn]] = []
        batch: list[Drawn] = []
        for each in sorted(drawn, key=lambda drawn: len(drawn.text.ids)):
            if batch and len(each.text.ids) * (len(batch) + 1) > self._tokens:
                made.append(batch)
                batch = []
            batch.append(each)
        made.append(batch)
        return [made[index] for index in chance.permutation(len(made))]

    def _drawn(self, chance: np.random.Generator) -> list[Drawn]:
        chosen = chance.choice(len(self._texts), self._chunk, p=self._chances)
        return [Drawn(self._texts[index], float(self._risks[index])) for index in chosen]


def _ratio(risks: NDArray[np.float64]) -> float:
    """How many times as often unsafe weight is drawn so that its share becomes `UNSAFE`."""
    unsafe, safe = float(risks.sum()), float((1 - risks).sum())
    if not unsafe or not safe:
        return 1.0
    return float(np.clip(UNSAFE / (1 - UNSAFE) * safe / unsafe, 1 / MOST, MOST))
