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
_FEW_WORDS: Final = 8  # less room than this is no burial
_MOST: Final = 60  # fillers


def bury(text: str, fillers: Sequence[str], chance: random.Random, *, max_words: int) -> str:
    """`text` at the start, in the middle or at the end of harmless `fillers`, in a random layout.

    Each filler is used once at most, and cut where there is no room for it; the text itself is
    never cut. Together they have at most `max_words` words, the labels of a layout (`User:`) not
    counted; a text as long as that comes back as it is.
    """
    room = max_words - len(text.split())
    if not fillers or room < _FEW_WORDS:
        return text
    # Long burials are what is rare in the data, but every length must occur.
    room = chance.randint(_FEW_WORDS, room)
    parts: list[str] = []
    for filler in chance.sample(fillers, min(_MOST, len(fillers))):
        words = filler.split()[:room]
        if words:
            parts.append(" ".join(words))
            room -= len(words)
    parts.insert(_place(len(parts), chance), text)
    return chance.choice(_LAYOUTS)(parts, chance)


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
        parts.insert(_place(len(parts), chance), buried.text)
        text = chance.choice((" ", "\n")).join(parts)
        made.append(Sample(text, SOURCE, buried.on_input, buried.on_output, buried.categories))
    return made


def _place(others: int, chance: random.Random) -> int:
    """Mostly at the end, where an attacker puts it and where the last window is cut."""
    return others if chance.random() < 1 / 2 else chance.randrange(others + 1)


def _flowing(parts: Sequence[str], chance: random.Random) -> str:
    return chance.choice((" ", "\n", "\n\n")).join(parts)


def _listed(parts: Sequence[str], chance: random.Random) -> str:
    mark = chance.choice(("- ", "* ", "{}. ", "{}) "))
    return "\n".join(mark.format(number) + part for number, part in enumerate(parts, start=1))


def _turns(parts: Sequence[str], chance: random.Random) -> str:
    """Turn by turn; whoever starts, the last word may be of either side."""
    names = chance.choice((("User", "Assistant"), ("Human", "AI"), ("Q", "A"), ("me", "you")))
    first = chance.randrange(2)
    return "\n".join(f"{names[(first + at) % 2]}: {part}" for at, part in enumerate(parts))


_LAYOUTS: Final = (_flowing, _flowing, _listed, _turns)
