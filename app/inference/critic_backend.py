"""Runs a critic over windows of a text: one number each, the running risk at the window's end.

Knows nothing about texts, categories or thresholds. Importing it imports torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from app.rectification.critic_model import Critic
from app.rectification.critic_rows import CriticRows

_PROMPTS: Final = 16
"""Prompts that are kept as they were read. A stream asks about its own some ten times."""

_Prompt = tuple[int, ...]


class CriticBackend:
    """Reads what is new of a window since the last one behind the same prompt.

    That is the prompt itself, and what two windows begin with: the answer depends on the tokens
    alone. `predict` is for one thread at a time.

    Args:
        critic: Ready to use.
        threads: Threads of torch for one window.
    """

    def __init__(self, critic: Critic, *, threads: int) -> None:
        self._rows = CriticRows(critic)
        self._threads = threads
        self._risks: OrderedDict[_Prompt, list[float]] = OrderedDict()  # the least used first

    def predict(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The running risk of each window, (windows, 1), in [0, 1].

        Args:
            batch: For each window the number of tokens of its prompt, then those, then its own.
        """
        torch.set_num_threads(self._threads)  # holds for the calling thread
        risks = [running_risk(self._judged(*_parted(each))) for each in batch]
        return np.asarray(risks, np.float32).reshape(-1, 1)

    def warm_up(self) -> None:
        """Pay the cost of the first call now."""
        self.predict([(1, 0, 0, 0)])

    def _judged(self, prompt: _Prompt, window: Sequence[int]) -> list[float]:
        """The risk of each token of a window; the first one of all has none."""
        read = self._risks.pop(prompt, [])
        if not read and len(self._risks) == _PROMPTS:
            self._rows.forget(self._risks.popitem(last=False)[0])
        token_ids = (*prompt, *window)
        try:
            new = self._rows.risks(prompt, token_ids).tolist()
        except BaseException:
            self._rows.forget(prompt)  # it may have read a part
            raise
        risks = self._risks[prompt] = [*read[: len(token_ids) - len(new)], *new]
        return risks[max(len(prompt), 1) :]


def running_risk(risks: Sequence[float]) -> float:
    """The highest risk that two tokens in a row have reached: the measure of a text so far.

    A single one is often no more than a word that could have gone either way. A text of one token
    has its risk, an empty one has none.
    """
    if len(risks) > 1:
        return max(map(min, pairwise(risks)))
    return risks[0] if risks else 0.0


def _parted(row: Sequence[int]) -> tuple[_Prompt, Sequence[int]]:
    first = 1 + row[0]
    return tuple(row[1:first]), row[first:]
