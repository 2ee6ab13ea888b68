"""Scores to one token id: penalties, temperature, top-k, top-p, and a generator per choice.

Knows nothing about batches, prompts or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from app.generation.request import Sampling
from app.rectification.sampling import Sampling as RectifiedSampling

_LEAST_TOP_P: Final = 1e-6  # for a critic's caps, "the best token only" is as many as they need


class Sampler:
    """Chooses the tokens of one choice. The same seed and the same scores give the same tokens."""

    def __init__(self, sampling: Sampling, choice: int) -> None:
        self._sampling = sampling
        self.rectified: Final = RectifiedSampling(
            sampling.temperature, sampling.top_k, max(sampling.top_p, _LEAST_TOP_P)
        )
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
        _require_a_token(scores)
        return self._counted(self._draw(self.penalised(scores)))

    def choose_rectified(self, log_probs: Tensor) -> int:
        """Return the next token id, drawn from the log-probabilities as they are.

        Temperature, top-k and top-p are in them already: `rectification.steering` applies them, for
        a cap holds only for what is drawn from. Raises `ValueError` if they allow no token.
        """
        _require_a_token(log_probs)
        if self.rectified.greedy:
            return self._counted(int(log_probs.argmax()))
        token_ids = log_probs.isfinite().nonzero().squeeze(1)
        # In the order of `choose`: the same seed draws the same tokens where nothing was changed.
        left, order = log_probs[token_ids].sort(descending=True)
        return self._counted(int(token_ids[order[self._drawn(left.exp())]]))

    def take_back(self, token_ids: Sequence[int]) -> None:
        """Forget that tokens were chosen; the generator does not go back."""
        for token in token_ids:
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]

    def penalised(self, scores: Tensor) -> Tensor:
        """Return the scores less the penalties of the tokens chosen so far."""
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
        return int(token_ids[self._drawn(probabilities)])

    def _drawn(self, probabilities: Tensor) -> Tensor:
        return torch.multinomial(probabilities, 1, generator=self._generator)

    def _counted(self, token: int) -> int:
        self._counts[token] = self._counts.get(token, 0) + 1
        return token


def _require_a_token(scores: Tensor) -> None:
    if not bool(torch.isfinite(scores.max())):  # NaN spreads into the maximum
        raise ValueError("the scores allow no token")
