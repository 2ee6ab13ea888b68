import numpy as np
import pytest

from app.domain.detection import OperatingPoint
from app.training import metrics


def test_thresholds_keep_their_budgets_and_are_ordered():
    harmless = np.random.default_rng(1).uniform(size=2000) ** 3 * 0.9
    points = metrics.thresholds(harmless)
    assert (
        points[OperatingPoint.STRICT]
        < points[OperatingPoint.BALANCED]
        < points[OperatingPoint.LOOSE]
    )
    for point, budget in metrics.FALSE_ALARMS.items():
        assert budget - 0.002 <= (harmless >= points[point]).mean() <= budget


def test_a_threshold_stays_reachable():
    assert max(metrics.thresholds(np.full(50, 0.9999)).values()) < 0.999


def test_ranking_of_a_perfect_and_of_a_one_sided_set():
    labels = np.array([0.0, 0.0, 1.0])
    assert metrics.ranking(labels, np.array([0.1, 0.2, 0.3])) == {"auroc": 1.0, "auprc": 1.0}
    assert metrics.ranking(labels[:2], np.array([0.1, 0.2])) == {"auroc": None, "auprc": None}


def test_counts_at_a_threshold():
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    found = metrics.at_threshold(labels, np.array([0.1, 0.6, 0.5, 0.4]), 0.5)
    assert found == {"f1": 0.5, "recall": 0.5, "fpr": 0.5}
    only_safe = metrics.at_threshold(labels[:2], np.array([0.1, 0.6]), 0.5)
    assert only_safe == {"f1": None, "recall": None, "fpr": 0.5}


def test_platt_turns_logits_into_frequencies():
    chance = np.random.default_rng(2)
    logits = chance.normal(size=4000)
    labels = (chance.uniform(size=4000) < 1 / (1 + np.exp(-3 * logits))).astype(float)
    slope, offset = metrics.platt(labels, logits)
    assert slope == pytest.approx(3.0, rel=0.15)
    assert offset == pytest.approx(0.0, abs=0.15)
    scores = 1 / (1 + np.exp(-(slope * logits + offset)))
    assert metrics.expected_calibration_error(labels, scores) < 0.03
    assert metrics.expected_calibration_error(labels, np.full(4000, 0.9)) > 0.3


def test_decisions_are_counted():
    labels = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    caught = np.array([True, False, False, False, True, False])
    found = metrics.decided(labels, caught)
    assert found == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "fpr": 0.25}


def test_decisions_on_sets_of_one_class():
    caught = np.array([True, False])
    only_unsafe = metrics.decided(np.ones(2), caught)
    assert only_unsafe == {"precision": None, "recall": 0.5, "f1": 0.6667, "fpr": None}
    only_safe = metrics.decided(np.zeros(2), caught)
    assert only_safe == {"precision": None, "recall": None, "f1": None, "fpr": 0.5}


def test_recall_at_a_budget_of_false_alarms():
    harmless = np.arange(100) / 200  # 0.000 to 0.495
    unsafe = np.array([0.4, 0.49, 0.4925, 0.6])
    labels = np.concatenate([np.zeros(100), np.ones(4)])
    scores = np.concatenate([harmless, unsafe])
    # One false alarm may pass: the threshold lies above 0.490.
    assert metrics.tpr_at_fpr(labels, scores, 0.01) == 0.5
    assert metrics.tpr_at_fpr(labels, scores, 0.001) is None
    assert metrics.tpr_at_fpr(labels[:100], scores[:100], 0.01) is None


def test_ties_do_not_slip_under_a_budget():
    labels = np.array([0.0] * 10 + [1.0] * 2)
    scores = np.array([0.9] * 10 + [0.9, 1.0])
    assert metrics.tpr_at_fpr(labels, scores, 0.1) == 0.5
