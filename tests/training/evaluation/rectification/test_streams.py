from itertools import pairwise

import numpy as np
import pytest
import torch

from app.training.evaluation.rectification.streams import stops, threshold, traces
from app.training.evaluation.sets import Row


def row(unsafe, text="kill the bomb", context="hello"):
    return Row("r", text, unsafe, role="response", context=context)


def trace(*risks):
    return np.asarray(risks, np.float64)


def test_a_threshold_lets_all_but_one_in_a_hundred_harmless_answers_pass():
    so_far = [trace(0.0, number / 1000) for number in range(300)] + [trace(0.9, 0.9)]
    rows = [row(unsafe=False)] * 300 + [row(unsafe=True)]
    found = threshold(so_far, rows)
    assert sum(each[-1] >= found for each in so_far[:300]) == 2
    with pytest.raises(ValueError, match="harmless"):
        threshold(so_far[-1:], rows[-1:])


def test_an_unsafe_answer_counts_only_if_it_is_stopped_before_its_last_token():
    so_far = [trace(0.0, 0.1, 0.6, 0.6), trace(0.0, 0.1, 0.1, 0.6), trace(0.0, 0.7)]
    rows = [row(unsafe=True), row(unsafe=True), row(unsafe=False)]
    (found,) = stops(so_far, rows, {"here": 0.5})
    assert (found.chosen_by, found.harmless, found.unsafe) == ("here", 1, 2)
    assert found.stopped == 0.5
    assert found.harmless_stopped == 1.0
    assert (found.let_out, found.tokens_out) == (0.75, 3.0)
    (none,) = stops(so_far, rows, {"here": 0.9})
    assert (none.stopped, none.let_out, none.tokens_out) == (0.0, None, None)


def test_the_running_risk_is_that_of_two_tokens_in_a_row_of_the_answer(writers):
    critic, layout = writers.critic, writers.layout
    (found,) = traces(critic, layout, [row(unsafe=True)])
    before, answer = layout.chat("hello"), layout.tokens("kill the bomb")
    text = torch.tensor([[*before, *answer]])
    with torch.no_grad():
        hidden = critic.read(text[:, :-1], torch.arange(text.shape[1] - 1)[None])
        risks = -critic.q_of(hidden, text[:, 1:])[0, len(before) - 1 :].double().numpy()
    assert len(found) == len(answer)
    assert found[0] == 0
    best = max(min(pair) for pair in pairwise(risks))
    assert found[-1] == pytest.approx(best, rel=1e-5)
