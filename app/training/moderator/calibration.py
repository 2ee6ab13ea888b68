"""Turns the probabilities of harmless texts into thresholds that keep their budgets.

Knows nothing about networks or files.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.domain.categories import Category
from app.domain.detection import OperatingPoint
from app.training.metrics import FALSE_ALARMS
from app.training.outputs import CATEGORIES

SPREAD: Final = 0.25
"""How far a category's threshold follows its own false alarms: 0 for one threshold for all.

Of 0, 0.15, 0.25 and 0.5 this one found most on dev and held-out rows at the same budget.
"""

_LOWEST: Final = 0.03
_HIGHEST: Final = 0.995
_STEPS: Final = 40


def category_thresholds(
    harmless: NDArray[np.float64], spread: float = SPREAD
) -> dict[OperatingPoint, dict[Category, float]]:
    """Thresholds of each category, so that all together keep the budget of each operating point.

    A category that harmless texts seldom resemble is caught at a lower score than one that they
    often resemble: in logits the thresholds keep their distances, and all move together until the
    share of harmless texts that any category flags is within the budget.

    Args:
        harmless: (texts, categories) probabilities of harmless texts.
        spread: How far the thresholds of categories may differ.
    """
    usual = _logit(np.quantile(harmless, 1.0 - FALSE_ALARMS[OperatingPoint.STRICT], axis=0))
    offsets = spread * (usual - usual.mean())
    found: dict[OperatingPoint, dict[Category, float]] = {}
    for point, budget in FALSE_ALARMS.items():
        low, high = -12.0, 12.0
        for _ in range(_STEPS):
            level = (low + high) / 2
            flagged = (harmless >= _limits(level, offsets)).any(axis=1).mean()
            low, high = (level, high) if flagged > budget else (low, level)
        limits = [math.ceil(value * 1e6) / 1e6 for value in _limits(high, offsets).tolist()]
        found[point] = dict(zip(CATEGORIES, limits, strict=True))
    return found


def _limits(level: float, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    limits: NDArray[np.float64] = np.clip(
        1.0 / (1.0 + np.exp(-(level + offsets))), _LOWEST, _HIGHEST
    )
    return limits


def _logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(probability, _LOWEST, _HIGHEST)
    logits: NDArray[np.float64] = np.log(inside / (1.0 - inside))
    return logits
