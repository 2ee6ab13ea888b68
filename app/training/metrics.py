"""Figures of merit of a score, and calibration of one. Knows nothing about models or files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from app.domain.detection import OperatingPoint

Scores = NDArray[np.float64]

FALSE_ALARMS: Final[Mapping[OperatingPoint, float]] = {
    OperatingPoint.STRICT: 0.05,
    OperatingPoint.BALANCED: 0.01,
    OperatingPoint.LOOSE: 0.002,
}
"""The part of harmless texts that each operating point may flag."""


def ranking(labels: Scores, scores: Scores) -> dict[str, float | None]:
    """AUROC and AUPRC; None where a set holds one class only."""
    if labels.min() == labels.max():
        return {"auroc": None, "auprc": None}
    return {
        "auroc": round(float(roc_auc_score(labels, scores)), 4),
        "auprc": round(float(average_precision_score(labels, scores)), 4),
    }


def at_threshold(labels: Scores, scores: Scores, threshold: float) -> dict[str, float | None]:
    """F1, recall and false-positive rate; None where a set has no such rows."""
    flagged = scores >= threshold
    unsafe = labels == 1
    hits = float((flagged & unsafe).sum())
    both = unsafe.any() and not unsafe.all()
    return {
        "f1": round(2 * hits / float(flagged.sum() + unsafe.sum()), 4) if both else None,
        "recall": round(hits / float(unsafe.sum()), 4) if unsafe.any() else None,
        "fpr": round(float(flagged[~unsafe].mean()), 4) if not unsafe.all() else None,
    }


def decided(labels: Scores, caught: NDArray[np.bool_]) -> dict[str, float | None]:
    """Precision, recall, F1 and false-positive rate of decisions that were made.

    None where a set has no such rows. A set of unsafe rows only has an F1 (its precision is 1), as
    the published tables of such sets give it.
    """
    unsafe = labels == 1
    hits, alarms = int((caught & unsafe).sum()), int(caught.sum())
    harmless = int((~unsafe).sum())
    found = {
        "precision": hits / alarms if alarms and unsafe.any() and harmless else None,
        "recall": hits / int(unsafe.sum()) if unsafe.any() else None,
        "f1": 2 * hits / (alarms + int(unsafe.sum())) if unsafe.any() else None,
        "fpr": (alarms - hits) / harmless if harmless else None,
    }
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def tpr_at_fpr(labels: Scores, scores: Scores, budget: float) -> float | None:
    """The part of the unsafe rows over the lowest threshold that keeps the budget of false alarms.

    None where a set has no unsafe rows, or too few harmless ones to tell such a budget from none.
    """
    unsafe = labels == 1
    harmless = np.sort(scores[~unsafe])[::-1]
    allowed = int(harmless.size * budget + 1e-9)
    if not unsafe.any() or not allowed:
        return None
    # Strictly above the first harmless score that is one too many: ties are not split.
    limit = harmless[allowed] if allowed < harmless.size else -np.inf
    return round(float((scores[unsafe] > limit).mean()), 4)


def platt(labels: Scores, logits: Scores) -> tuple[float, float]:
    """Slope and offset that turn a logit into a calibrated one; classes count alike."""
    fit = LogisticRegression(C=1e6, class_weight="balanced").fit(logits.reshape(-1, 1), labels)
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def thresholds(harmless: Scores) -> dict[OperatingPoint, float]:
    """The lowest score of each operating point that keeps its budget of false alarms."""
    found = {}
    for point, budget in FALSE_ALARMS.items():
        found[point] = float(np.quantile(harmless, 1.0 - budget, method="higher")) + 1e-6
    return {point: round(min(value, 0.995), 6) for point, value in found.items()}


def expected_calibration_error(labels: Scores, scores: Scores, bins: int = 10) -> float:
    """Mean distance between score and frequency, over bins of equal width."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    error = 0.0
    for each in range(bins):
        inside = index == each
        if inside.any():
            error += inside.mean() * abs(float(labels[inside].mean() - scores[inside].mean()))
    return round(error, 4)
