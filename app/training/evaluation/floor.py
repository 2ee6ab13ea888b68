"""The floor: TF-IDF and logistic regression on the same training rows.

Knows nothing about the detectors. A model that stays under it has learnt less than word counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.training import metrics
from app.training.corpus.datasets import Sample, labels_of, load_corpus
from app.training.corpus.templates import template_samples
from app.training.evaluation.judging import Judgement
from app.training.evaluation.sets import SEED, Row
from app.training.metrics import Scores

FLOOR: Final = "floor"
"""The name of the floor among the contestants."""

_ROLE_OF: Final[Mapping[Stage, str]] = {Stage.INPUT: "prompt", Stage.OUTPUT: "response"}


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


class FloorJudge:
    """The floor with a threshold for each stage: a contestant like any detector."""

    def __init__(self, floor: Floor, balanced: Mapping[Stage, float]) -> None:
        self._floor = floor
        self._balanced = balanced

    def judge(self, rows: Sequence[Row]) -> list[Judgement]:
        """Judge rows of one stage; one answer each, in order."""
        stage = rows[0].stage
        scores = self._floor.score([row.text for row in rows], stage)
        limit = self._balanced[stage]
        return [Judgement(score, score >= limit) for score in scores.tolist()]


def train_floor(data: Path) -> FloorJudge:
    """The floor on the rows that the detectors train on, its thresholds chosen as theirs are."""
    corpus = load_corpus(data, licences="all", seed=SEED, extra=template_samples())
    floor = Floor(corpus.train, seed=SEED)
    aside = [*corpus.dev, *corpus.held_out]
    balanced = {}
    for stage in Stage:
        harmless = _harmless(aside, stage)
        points = metrics.thresholds(floor.score(harmless, stage))
        balanced[stage] = points[OperatingPoint.BALANCED]
    return FloorJudge(floor, balanced)


def _harmless(samples: Sequence[Sample], stage: Stage) -> list[str]:
    safe = labels_of(samples, stage) == 0
    return [
        sample.text
        for sample, is_safe in zip(samples, safe, strict=True)
        if is_safe and sample.role == _ROLE_OF[stage]
    ]
