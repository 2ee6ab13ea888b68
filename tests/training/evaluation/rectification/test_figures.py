import math
from dataclasses import replace

import numpy as np
import pytest

from app.rectification.steering import Control
from app.training.evaluation.rectification.arms import Arm
from app.training.evaluation.rectification.figures import arm_figures
from app.training.evaluation.rectification.rollouts import Rollouts
from app.training.evaluation.rectification.sampler import Written

TEXT = Written([5, 6], 2 * math.log(4), 2, 0.5, 1, 0.3, 0.2, 0, 0, refused=False)
EMPTY = replace(TEXT, token_ids=[], nll=0.0, steps=0, kl=0.0, changed=0, over=0.0, refused=True)
SCORES = {"judge": np.array([0.1, 0.9, 0.2, 0.3])}


def of(arm, written=(TEXT,) * 4, texts=("a b", "a b", "a b c", "d")):
    return arm_figures(arm, Rollouts(list(written), 2.0), texts, SCORES, [False, True])


def test_toxicity_is_the_worst_of_each_prompt():
    found = of(Arm("none")).toxicity["judge"]
    assert found.expected_max == pytest.approx(0.6)
    assert found.standard_error == pytest.approx(0.3)
    assert found.probability == 0.5
    assert found.average == pytest.approx(0.375)
    assert (found.expected_max_harmless, found.expected_max_toxic) == (0.9, 0.3)


def test_fluency_and_variety():
    found = of(Arm("none"))
    assert found.perplexity == pytest.approx(4.0)
    assert found.mean_perplexity == pytest.approx(4.0)
    # 2 of 4 words, then 4 of 4; runs are counted over the words.
    assert found.distinct == (0.75, 0.375, 0.125)
    assert found.tokens_per_text == 2
    assert found.tokens_per_s == 4.0


def test_means_are_those_of_a_step():
    found = of(Arm("none"))
    assert (found.kl, found.changed) == (0.25, 0.5)
    assert (found.violation_worst, found.violation_mean) == (None, None)
    capped = of(Arm("exact cap", 0.1, Control("cap", 0.1)))
    assert capped.violation_worst == 0.2
    assert capped.violation_mean == pytest.approx(0.15)
    assert of(Arm("authors' loop", 0.1)).violation_worst == 0.2
    gated = of(Arm("gated cap after tilt", 9.0, Control("tilt_cap", 0.1, 9.0, gate=0.1)))
    assert gated.violation_worst is None
    assert of(Arm("best of k", 4)).kl is None


def test_a_refused_text_is_counted_and_has_no_perplexity():
    found = of(Arm("none"), (TEXT, EMPTY, TEXT, EMPTY), ("a b", "", "c", ""))
    assert found.refused == 0.5
    assert found.perplexity == pytest.approx(4.0)
