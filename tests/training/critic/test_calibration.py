import numpy as np
import pytest
import torch

from app.training import metrics
from app.training.critic.calibration import (
    calibrate,
    platt,
    returns_of,
    risk_logits,
    risks_of,
)
from app.training.critic.plot import binned, plot_reliability
from app.training.critic.texts import Text
from tests.training.critic.tiny import tiny_critic, tiny_texts


@pytest.fixture
def critic():
    made = tiny_critic()
    with torch.no_grad():
        made.state_direction.weight.normal_(std=0.5)
    return made.eval()


def test_every_judged_token_has_a_logit_whatever_stands_beside_its_text(critic):
    texts = tiny_texts(9)
    together = risk_logits(critic, texts)
    assert [len(each) for each in together] == [text.judged for text in texts]
    for text, found in zip(texts, together, strict=True):
        assert np.allclose(risk_logits(critic, [text])[0], found, atol=1e-5)


def test_logits_are_those_of_the_values(critic):
    text = tiny_texts(1)[0]
    ids = torch.tensor([text.ids])
    with torch.no_grad():
        every = critic.q_values(critic.read(ids, torch.arange(ids.shape[1])[None]))
    taken = [-every[0, at - 1, text.ids[at]].item() for at in range(text.first, len(text.ids))]
    assert np.allclose(risks_of(risk_logits(critic, [text]))[0], taken, atol=1e-5)


def test_a_known_slope_and_offset_are_found_again():
    chance = np.random.default_rng(1)
    true = chance.normal(-1.0, 1.5, 4000)
    texts = [Text((1, 2), 1, float(1 / (1 + np.exp(-each))), "answer") for each in true]
    slope, offset = platt([np.array([each]) for each in (true - 0.4) / 2.0], texts)
    assert slope == pytest.approx(2.0, abs=0.02)
    assert offset == pytest.approx(0.4, abs=0.02)


def test_calibration_folds_exactly_into_the_weights(critic):
    texts = tiny_texts(60)
    before = risk_logits(critic, texts)
    slope, offset = calibrate(critic, texts)
    for old, new in zip(before, risk_logits(critic, texts), strict=True):
        assert np.allclose(new, slope * old + offset, atol=1e-4)
    returns, flat = returns_of(texts), np.concatenate(risks_of(risk_logits(critic, texts)))
    assert flat.mean() == pytest.approx(returns.mean(), abs=1e-3)
    raw = np.concatenate(risks_of(before))
    error = metrics.expected_calibration_error
    assert error(returns, flat) < error(returns, raw)


def test_bins_hold_equally_many_tokens_in_order():
    predicted = np.linspace(0, 1, 150)[::-1].copy()
    means, found = binned(predicted, predicted**2)
    assert means == sorted(means)
    assert len(means) == 15
    assert found[0] < means[0] < 0.1


def test_the_plot_is_an_image(tmp_path):
    values = np.linspace(0, 1, 40)
    plot_reliability(tmp_path / "plot.png", values, before=values**2, after=values)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
