import numpy as np

from app.domain.detection import OperatingPoint
from app.training.metrics import FALSE_ALARMS
from app.training.moderator.calibration import category_thresholds
from app.training.outputs import CATEGORIES


def _harmless(rows=4000, seed=1):
    chance = np.random.default_rng(seed)
    scores = chance.beta(0.5, 12, (rows, len(CATEGORIES)))
    scores[:, 0] = chance.beta(1, 4, rows)  # one kind that harmless texts resemble
    return scores


def test_all_categories_together_keep_each_budget():
    scores = _harmless()
    for point, thresholds in category_thresholds(scores).items():
        limits = np.asarray([thresholds[category] for category in CATEGORIES])
        flagged = (scores >= limits).any(axis=1).mean()
        assert flagged <= FALSE_ALARMS[point]
        assert flagged > FALSE_ALARMS[point] / 2


def test_a_kind_that_harmless_texts_resemble_gets_a_higher_threshold():
    balanced = category_thresholds(_harmless())[OperatingPoint.BALANCED]
    assert balanced[CATEGORIES[0]] > max(balanced[category] for category in CATEGORIES[1:])


def test_thresholds_rise_from_strict_to_loose():
    found = category_thresholds(_harmless(rows=300))
    for category in CATEGORIES:
        strict, balanced, loose = (found[point][category] for point in OperatingPoint)
        assert 0 < strict <= balanced <= loose < 1
