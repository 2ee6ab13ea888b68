"""Which rows of the corpus train the detector, and what the language model reads of each.

Knows nothing about the model. One thread reads some three hundred tokens a second, so the rows are
a sample, and of a long text only the ends are read.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.generation.user_prompts import UserPrompts
from app.training.corpus.datasets import Sample

WINDOW: Final = 256
OVERLAP: Final = 32

_MOST: Final = {("prompt", 0): 500, ("prompt", 1): 220, ("comment", 0): 30, ("comment", 1): 30}
"""Rows of a source at most, by role and label. Harmless prompts come from few sources."""
ROWS: Final = 2_500
"""Rows in all."""
_LONGEST: Final = 1_000
"""Characters of a training text: above, one in ten is taken."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Prompts for texts: `owner[i]` is the text that prompt i belongs to."""

    token_ids: list[tuple[int, ...]]
    owner: NDArray[np.int64]


def sample(rows: Iterable[Sample]) -> list[Sample]:
    """The rows that train: of each source those whose hash is lowest, and of these a sample."""
    groups: dict[tuple[str, str, int], list[Sample]] = defaultdict(list)
    for row in rows:
        if row.on_input in {0.0, 1.0} and (row.role, int(row.on_input)) in _MOST:
            groups[row.source, row.role, int(row.on_input)].append(row)
    taken = []
    for (_, role, label), group in sorted(groups.items()):
        fit = [row for row in group if len(row.text) <= _LONGEST or _hash(row)[-1] % 10 == 0]
        taken += sorted(fit, key=_hash)[: _MOST[role, label]]
    random.Random(1).shuffle(taken)  # noqa: S311 - the same order every time
    return taken[:ROWS]


def known_prompts(rows: Iterable[Sample], most: int) -> list[Sample]:
    """Prompts with a label, `most` at most, the same ones every time."""
    prompts = [row for row in rows if row.role == "prompt" and row.on_input in {0.0, 1.0}]
    return sorted(prompts, key=_hash)[:most]


def windows_of(texts: Sequence[str], prompts: UserPrompts, *, ends: bool) -> Windows:
    """All windows of each text, or only its first and its last one."""
    token_ids: list[tuple[int, ...]] = []
    owner: list[int] = []
    for index, text in enumerate(texts):
        cuts, _ = prompts.encode(text)
        for cut in (cuts[:1] + cuts[1:][-1:]) if ends else cuts:
            token_ids.append(cut.token_ids)
            owner.append(index)
    return Windows(token_ids, np.asarray(owner, np.int64))


def _hash(row: Sample) -> bytes:
    return hashlib.sha256(row.text.encode()).digest()
