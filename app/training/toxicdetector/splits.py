"""Splits of the paper's own data: at random as published, and two that keep relatives together.

Knows nothing about models. The toxic half of that data is built from a few sources and templates: a
random split puts one filling of a template into training and another one into the test.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.training.corpus.datasets import runs_of, words_of

Mask = NDArray[np.bool_]

RELATED: Final = 4
"""Texts that share a run of so many words are relatives: fillings of a template share no more."""


def at_random(count: int, seed: int) -> Mask:
    """Half of the texts train."""
    return np.random.default_rng(seed).permutation(count) < count // 2


def by_group(groups: Sequence[Hashable], seed: int) -> Mask:
    """Whole groups train, in random order, until they hold half of the texts."""
    names = sorted(set(groups), key=repr)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = {name: groups.count(name) for name in names} if len(names) < len(groups) else {}
    taken: set[Hashable] = set()
    room = len(groups) // 2
    for name in (names[index] for index in order):
        size = sizes.get(name, 1)
        if size <= room:
            taken.add(name)
            room -= size
    return np.asarray([group in taken for group in groups])


def relatives(texts: Sequence[str], run: int = RELATED) -> list[int]:
    """A number for each text; those that share a run of words, also through others, share it."""
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[int, int] = {}
    for index, text in enumerate(texts):
        for each in runs_of(words_of(text), run):
            parent[root(index)] = root(first.setdefault(each, index))
    return [root(index) for index in range(len(texts))]
