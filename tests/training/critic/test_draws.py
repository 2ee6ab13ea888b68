import math
from itertools import islice

import numpy as np
import pytest

from app.training.critic.draws import MOST, ON_POLICY, UNSAFE, Draws
from app.training.critic.texts import Text
from tests.training.critic.tiny import tiny_texts


def _rollouts(risks):
    return [Text((1, 2, 3), 1, risk, "continuation") for risk in risks]


def _drawn(texts, batches=400, **settings):
    draws = Draws(texts, **{"tokens": 60, "seed": 1, **settings})
    return draws, [drawn for batch in islice(draws.batches(), batches) for drawn in batch]


def test_unsafe_weight_and_rollouts_have_their_shares():
    texts = [
        *_rollouts([0.9, 0.1, 0.2, 0.1]),
        *(Text((1, 2), 1, risk, "reading") for risk in (0.9, 0.8, 0.2)),
    ]
    _, drawn = _drawn(texts)
    rollouts = [each for each in drawn if each.text.kind != "reading"]
    readings = [each for each in drawn if each.text.kind == "reading"]
    assert len(rollouts) / len(drawn) == pytest.approx(ON_POLICY, abs=0.03)
    for some in (rollouts, readings):
        assert np.mean([each.risk for each in some]) == pytest.approx(UNSAFE, abs=0.02)


def test_taking_off_the_shift_gives_the_true_expected_risk():
    """Texts with one prefix: its true value is the mean risk, whatever was drawn."""
    risks = [0.95, 0.4, 0.05, 0.01, 0.02, 0.1]
    draws, drawn = _drawn(_rollouts(risks), batches=4000)
    learnt = float(np.mean([each.risk for each in drawn]))
    logit = math.log(learnt / (1 - learnt)) - draws.shift
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(np.mean(risks), abs=0.01)
    assert draws.shift > 0


def test_a_few_unsafe_texts_are_not_drawn_without_end():
    draws, _ = _drawn(_rollouts([1.0] + [0.0] * 999), batches=1)
    assert draws.shift == pytest.approx(math.log(MOST))


def test_texts_that_are_all_alike_are_drawn_as_they_are():
    draws, drawn = _drawn(_rollouts([0.0] * 5), batches=3)
    assert draws.shift == 0
    assert {each.risk for each in drawn} == {0.0}


def test_batches_follow_from_the_seed_and_can_be_skipped():
    texts = tiny_texts()
    first, same = (Draws(texts, tokens=60, seed=5) for _ in range(2))
    everything = list(islice(first.batches(), 70))
    assert everything == list(islice(same.batches(), 70))
    assert everything[33:] == list(islice(same.batches(skip=33), 37))
    assert everything != list(islice(Draws(texts, tokens=60, seed=6).batches(), 70))


def test_no_batch_is_larger_than_wanted():
    for batch in islice(Draws(tiny_texts(), tokens=60, seed=5).batches(), 50):
        assert max(len(each.text.ids) for each in batch) * len(batch) <= 60


def test_a_pass_draws_as_many_texts_as_there_are():
    draws = Draws(tiny_texts(120), tokens=60, seed=5)
    drawn = sum(len(batch) for batch in islice(draws.batches(), draws.steps(1)))
    assert drawn == 120
    assert draws.steps(2.5) == round(2.5 * draws.steps(1))
