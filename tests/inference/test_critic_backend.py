from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference import critic_backend
from app.inference.critic_backend import CriticBackend, running_risk
from tests.rectification.random_critic import random_critic

CRITIC = random_critic()
TOKENS = st.lists(st.integers(0, 2), max_size=8)  # few different ones: much in common


@pytest.fixture
def backend():
    return CriticBackend(CRITIC, threads=1)


def row(prompt, window):
    return [len(prompt), *prompt, *window]


def expected(prompt, window):
    """From one pass over all tokens, as a definition."""
    token_ids = [*prompt, *window]
    if len(token_ids) < 2:
        return 0.0
    with torch.no_grad():
        hidden = CRITIC.read(torch.tensor([token_ids]), torch.arange(len(token_ids))[None])
        risks = -CRITIC.q_of(hidden[0, :-1], torch.tensor(token_ids[1:]))
    risks = [0.0, *risks.tolist()][max(len(prompt), 1) :]
    if len(risks) < 2:
        return risks[0] if risks else 0.0
    return max(min(one, other) for one, other in zip(risks[1:], risks[:-1], strict=True))


def test_a_risk_counts_when_two_tokens_in_a_row_reach_it():
    assert running_risk([0.1, 0.9, 0.2, 0.6, 0.7]) == 0.6
    assert running_risk([0.9, 0.1]) == 0.1
    assert running_risk([0.8]) == 0.8
    assert running_risk([]) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS.filter(len)), min_size=1, max_size=8))
def test_the_risk_is_that_of_the_tokens_whatever_was_read_before(rows):
    backend = CriticBackend(CRITIC, threads=1)

    found = [backend.predict([row(*each)]) for each in rows]

    together = CriticBackend(CRITIC, threads=1).predict([row(*each) for each in rows])
    assert together.shape == (len(rows), 1)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.concatenate(found), together, atol=1e-5)
    np.testing.assert_allclose(together[:, 0], [expected(*each) for each in rows], atol=1e-5)


def test_only_what_is_new_of_a_window_is_read(monkeypatch):
    passes = []
    read = CRITIC.read

    def counted(token_ids, *rest):
        passes.append(token_ids.shape[1])
        return read(token_ids, *rest)

    monkeypatch.setattr(CRITIC, "read", counted, raising=False)
    backend = CriticBackend(CRITIC, threads=1)
    prompt = list(range(20))

    backend.predict([row(prompt, [5, 6, 7])])
    backend.predict([row(prompt, [5, 6, 7, 8, 9])])
    backend.predict([row(prompt, [5, 6, 7, 8, 9])])
    backend.predict([row(prompt, [9, 9])])

    # The token before the news is read once more, for the state after it.
    assert passes == [23, 3, 3]


def test_few_prompts_are_kept(backend, monkeypatch):
    forgotten = []
    forget = backend._rows.forget
    monkeypatch.setattr(
        backend._rows, "forget", lambda key: (forgotten.append(key), forget(key))[1]
    )
    monkeypatch.setattr(critic_backend, "_PROMPTS", 2)

    for first in (1, 2, 1, 3):
        backend.predict([row([first, 4], [5, 6])])

    assert forgotten == [(2, 4)]
    risk = backend.predict([row([2, 4], [5, 6])])[0, 0]
    assert risk == pytest.approx(expected([2, 4], [5, 6]), abs=1e-5)


def test_a_window_that_fails_leaves_its_prompt_usable(backend):
    backend.predict([row([1, 4], [5, 6])])
    with pytest.raises(IndexError):
        backend.predict([row([1, 4], [5, 6, 7, 9_999])])

    risk = backend.predict([row([1, 4], [5, 6, 7])])[0, 0]

    assert risk == pytest.approx(expected([1, 4], [5, 6, 7]), abs=1e-5)


def test_a_critic_that_is_broken_judges_everything_unsafe():
    critic = random_critic()
    with torch.no_grad():
        critic.norm.weight.fill_(torch.nan)

    assert CriticBackend(critic, threads=1).predict([row([1, 2], [3, 4])]).tolist() == [[1.0]]


def test_the_first_call_may_come_early(backend):
    backend.warm_up()

    assert backend.predict([row([1], [2, 3])])[0, 0] == pytest.approx(
        expected([1], [2, 3]), abs=1e-5
    )
