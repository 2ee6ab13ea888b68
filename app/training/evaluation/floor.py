"""The floor: TF-IDF and logistic regression on the same training rows.

Knows nothing about the detector. A model that stays under it has learnt less than word counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from app.domain.conversation import Stage
from app.training.corpus.datasets import Sample, labels_of
from app.training.metrics import Scores


class Floor:
    """Words and pairs of words, weighted by TF-IDF, one regression for each stage."""

    def __init__(self, train: Sequence[Sample], *, seed: int) -> None:
        self._models = {}
        for stage in Stage:
            labels = labels_of(train, stage)
            known = ~np.isnan(labels)
            texts = [row.text for row, wanted in zip(train, known, strict=True) if wanted]
            model = make_pipeline(
                TfidfVectorizer(
                    ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=300_000
                ),
                LogisticRegression(C=4.0, class_weight="balanced", max_iter=200, random_state=seed),
            )
            self._models[stage] = model.fit(texts, labels[known])

    def score(self, texts: Sequence[str], stage: Stage) -> Scores:
        """The probability that each text is unsafe at `stage`."""
        found: Scores = self._models[stage].predict_proba(list(texts))[:, 1]
        return found
