import numpy as np
import pytest

from app.domain.detection import OperatingPoint
from app.inference.critic_backend import running_risk
from app.training.critic.measuring import figures, running, stop_thresholds, stops
from app.training.critic.texts import Text


def _text(risk, tokens):
    return Text(tuple(range(10, 11 + tokens)), 1, risk, "answer")


def test_the_running_risk_needs_two_tokens_in_a_row():
    found = running(np.array([0.1, 0.9, 0.2, 0.4, 0.5, 0.1]))
    assert found.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.2, 0.4, 0.4])


def test_the_running_risk_is_the_one_that_the_detector_computes():
    risks = np.random.default_rng(1).random(12)
    found = running(risks)
    for seen in range(2, 13):
        assert found[seen - 1] == pytest.approx(running_risk(risks[:seen].tolist()))


def test_a_text_of_one_token_is_judged_by_it():
    assert running(np.array([0.7])).tolist() == [0.7]


def test_thresholds_keep_their_budget_of_harmless_texts():
    peaks = np.linspace(0.0, 0.5, 1000)
    texts = [_text(0.1, 2) for _ in peaks] + [_text(0.9, 2)]
    risks = [np.array([peak, peak]) for peak in peaks] + [np.array([1.0, 1.0])]
    found = stop_thresholds(risks, texts)
    assert (peaks >= found[OperatingPoint.BALANCED]).mean() <= 0.01
    assert (peaks >= found[OperatingPoint.STRICT]).mean() == pytest.approx(0.05, abs=0.002)


def test_thresholds_need_harmless_texts():
    with pytest.raises(ValueError, match="harmless"):
        stop_thresholds([np.array([0.1])], [_text(0.9, 1)])


def test_a_stop_at_the_last_token_is_not_early():
    so_far = [np.array([0.0, 0.1, 0.9]), np.array([0.0, 0.9, 0.9]), np.array([0.0, 0.0, 0.9])]
    unsafe = np.array([True, True, False])
    assert stops(so_far, unsafe, 0.5) == {"unsafe_stopped_early": 0.5, "harmless_stopped": 1.0}


def test_figures_of_a_critic_that_knows_from_the_second_half_on():
    texts = [_text(0.9, 8) for _ in range(10)] + [_text(0.1, 8) for _ in range(10)]
    unsure = [np.full(4, 0.5)] * 20
    sure = [np.full(4, 0.9)] * 10 + [np.full(4, 0.1)] * 10
    risks = [np.concatenate(pair) for pair in zip(unsure, sure, strict=True)]
    found = figures(risks, texts, {OperatingPoint.BALANCED: 0.6})
    assert found["unsafe"] == 10
    assert found["tokens"] == 160
    assert found["mean_return"] == pytest.approx(0.5)
    assert found["running_auroc"] == {"25%": 0.5, "50%": 0.5, "75%": 1.0, "100%": 1.0}
    assert found["stops"]["balanced"] == {"unsafe_stopped_early": 1.0, "harmless_stopped": 0.0}
    # Half of the tokens say 0.5, where half of the texts are unsafe.
    assert found["calibration_error"] == pytest.approx(0.0, abs=1e-3)
