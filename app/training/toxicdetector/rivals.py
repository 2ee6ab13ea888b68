"""What the network is measured against: bags of words, MULI, and the paper's first version.

Knows nothing about data sets. Each takes the training rows and answers scores for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.training.metrics import Scores
from app.training.toxicdetector.network import inner_features

States = NDArray[np.float16]
Head = Callable[[torch.Tensor], torch.Tensor]

_MULI_RATE: Final = 5e-4
_MULI_L1: Final = 1e-3
_MULI_BATCH: Final = 128
_MULI_EPOCHS: Final = 20
"""The authors take 500."""


class BagOfWords:
    """TF-IDF of words and pairs of words, and logistic regression: the floor."""

    def __init__(self, texts: Sequence[str], toxic: Scores) -> None:
        self._model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
            LogisticRegression(C=4.0, class_weight="balanced", max_iter=500),
        ).fit(list(texts), toxic)

    def score(self, texts: Sequence[str]) -> Scores:
        """The probability of toxic."""
        found: Scores = self._model.predict_proba(list(texts))[:, 1]
        return found


class Muli:
    """MULI: logits of the first token of the answer, log p - log(1 - p), and L1 regression.

    Args:
        states: of the training rows, (rows, layers, hidden); the last layer's give the logits.
        toxic: their labels.
        head: the language model's head, from the last layer's state to the vocabulary.
        seed: of the order of the batches.
    """

    def __init__(self, states: States, toxic: Scores, head: Head, seed: int) -> None:
        torch.manual_seed(seed)
        self._head = head
        data = self._features(states)
        self._mean, self._scale = data.mean(0), data.std(0).clamp(min=1e-6)
        data = (data - self._mean) / self._scale
        labels = torch.from_numpy(toxic).float()
        positive = (1 - labels).sum() / labels.sum()
        self._linear = torch.nn.Linear(data.shape[1], 1)
        torch.nn.init.zeros_(self._linear.weight)
        optimiser = torch.optim.SGD(self._linear.parameters(), lr=_MULI_RATE)
        for _ in range(_MULI_EPOCHS):
            for batch in torch.split(torch.randperm(len(data)), _MULI_BATCH):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    self._linear(data[batch]).squeeze(1), labels[batch], pos_weight=positive
                )
                optimiser.zero_grad()
                torch.autograd.backward(loss + _MULI_L1 * self._linear.weight.abs().sum())
                optimiser.step()

    def score(self, states: States) -> Scores:
        """The probability of toxic."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(states), 512):
                data = (self._features(states[start : start + 512]) - self._mean) / self._scale
                parts.append(torch.sigmoid(self._linear(data).squeeze(1)))
        found: Scores = torch.cat(parts).numpy().astype(np.float64)
        return found

    def _features(self, states: States) -> torch.Tensor:
        with torch.no_grad():
            last = torch.from_numpy(states[:, -1].astype(np.float32))
            logits = torch.cat([self._head(part) for part in torch.split(last, 256)])
            log_p = logits.log_softmax(dim=1)
            return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


class InnerProducts:
    """The paper's first version: inner products with the concepts, the highest of each scenario.

    Unlike elementwise products, these depend on what the concepts say. Regression instead of the
    MLP: there are a few hundred features.
    """

    def __init__(
        self, states: States, toxic: Scores, concepts: States, scenarios: Sequence[int]
    ) -> None:
        data = states.astype(np.float32)
        self._mean, self._scale = data.mean(0), data.std(0) + 1e-6
        self._concepts = torch.from_numpy((concepts - self._mean) / self._scale)
        self._scenarios = scenarios
        self._model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=200)
        ).fit(self._features(states), toxic)

    def score(self, states: States) -> Scores:
        """The probability of toxic."""
        found: Scores = self._model.predict_proba(self._features(states))[:, 1]
        return found

    def _features(self, states: States) -> NDArray[np.float32]:
        data = torch.from_numpy((states - self._mean) / self._scale)
        found: NDArray[np.float32] = inner_features(data, self._concepts, self._scenarios).numpy()
        return found
