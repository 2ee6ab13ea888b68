"""Short texts buried among harmless ones, so that a window is judged by its worst sentence.

Knows nothing about models. The mean over a window dilutes one bad sentence among seven good ones;
without such samples the detector would learn to look at the average.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from app.training.corpus.datasets import Sample

SOURCE: Final = "composites"

_SHORT: Final = 140  # characters
_FILLERS: Final = (2, 6)


def composite_samples(samples: Sequence[Sample], *, count: int, seed: int) -> list[Sample]:
    """`count` texts: one short prompt or comment somewhere among harmless ones, with its labels.

    Half of the buried texts are unsafe.
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible, not a secret
    short = [each for each in samples if len(each.text) <= _SHORT and each.role != "response"]
    unsafe = [each for each in short if each.on_input == 1.0]
    safe = [each for each in short if each.on_input == 0.0 and each.role == "prompt"]
    if not unsafe or not safe:
        return []
    made = []
    for number in range(count):
        buried = chance.choice(unsafe if number % 2 else safe)
        parts = [each.text for each in chance.choices(safe, k=chance.randint(*_FILLERS))]
        # Mostly at the end, where an attacker puts it and where the last window is cut.
        place = len(parts) if chance.random() < 1 / 2 else chance.randrange(len(parts) + 1)
        parts.insert(place, buried.text)
        text = chance.choice((" ", "\n")).join(parts)
        made.append(Sample(text, SOURCE, buried.on_input, buried.on_output, buried.categories))
    return made
