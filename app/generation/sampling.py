"""Scores to one token id: penalties, temperature, top-k, top-p, and a generator per choice.

Knows nothing about batches, prompts or text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.generation.request import Sampling


class Sampler:
    """Chooses the tokens of one choice. The same seed and the same scores give the same tokens."""

    def __init__(self, sampling: Sampling, choice: int) -> None:
        self._sampling = sampling
        self._counts: dict[int, int] = {}
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            # Choices of one request differ, and each is reproducible.
            self._generator.manual_seed((sampling.seed + choice) % 2**63)

    def choose(self, scores: Tensor) -> int:
        """Return the next token id. Raises `ValueError` if the scores allow no token.

        Args:
            scores: one float per token of the vocabulary; left as they are.
        """
        if not bool(torch.isfinite(scores.max())):  # NaN spreads into the maximum
            raise ValueError("the scores allow no token")
        token = self._draw(self._penalised(scores))
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalised(self, scores: Tensor) -> Tensor:
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        if not self._counts or (presence == 0 and frequency == 0):
            return scores
        seen = torch.tensor(list(self._counts))
        counts = torch.tensor(list(self._counts.values()), dtype=scores.dtype)
        scores = scores.clone()
        scores[seen] -= presence + frequency * counts
        return scores

    def _draw(self, scores: Tensor) -> int:
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(scores.argmax())
        scores, token_ids = scores.sort(descending=True)
        if sampling.top_k:
            scores, token_ids = scores[: sampling.top_k], token_ids[: sampling.top_k]
        # The best score is taken off first: a tiny temperature must not overflow.
        probabilities = ((scores - scores[0]) / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            kept = max(1, int((before < sampling.top_p).sum()))
            probabilities = probabilities[:kept]
        drawn = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(token_ids[drawn])
