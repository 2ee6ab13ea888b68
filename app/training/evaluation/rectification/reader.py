"""The language model as reader of the rows of one batch, each behind the same words.

Knows nothing about control or drawing. No row ever leaves the batch: one that is finished is read
in place again, which costs less than code that moves rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.generation.key_values import KeyValues
from app.generation.llama import Llama

Tokens = Sequence[int]


class Reader:
    """Reads prompts once, then one token of each row at a time. For one batch.

    Args:
        model: The language model.
        before: What stands before every text, unseen by the caller.
    """

    def __init__(self, model: Llama, before: Tokens = ()) -> None:
        self._model = model
        self._before = list(before)
        self._cache = model.empty_cache()

    def begin(self, prompts: Sequence[Tokens]) -> Tensor:
        """Scores of the token after each prompt, (rows, vocabulary); equal neighbours cost once."""
        longest = len(self._before) + max(map(len, prompts))
        self._cache.reserve(len(prompts), longest)
        scores: list[Tensor] = []
        known: Tokens | None = None
        for row, prompt in enumerate(prompts):
            if prompt != known:
                one, last = self._read(prompt)
                known = prompt
            self._cache.copy_row(one, 0, row, len(self._before) + len(prompt))
            scores.append(last)
        return torch.cat(scores)

    def newest(self, texts: Sequence[Tokens]) -> Tensor:
        """Scores after the newest token of each row, (rows, vocabulary).

        What a row has read before that must be what it reads now, or longer: a text from which
        tokens were taken back is read right.
        """
        positions = [len(self._before) + len(text) - 1 for text in texts]
        self._cache.reserve(len(texts), max(positions) + 1)
        newest = torch.tensor([[text[-1]] for text in texts])
        return self._model.forward(newest, torch.tensor(positions)[:, None], self._cache)

    def _read(self, prompt: Tokens) -> tuple[KeyValues, Tensor]:
        token_ids = [*self._before, *prompt]
        cache = self._model.empty_cache()
        cache.reserve(1, len(token_ids))
        positions = torch.arange(len(token_ids))[None]
        return cache, self._model.forward(torch.tensor([token_ids]), positions, cache)
