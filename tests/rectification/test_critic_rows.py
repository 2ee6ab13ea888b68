from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from app.rectification import critic_rows
from app.rectification.critic_model import Critic
from app.rectification.critic_rows import CriticRows
from tests.rectification.random_critic import SHAPE, alone, random_critic

KEYS = st.sampled_from(["a", "b", "c", "d"])
# Few different tokens: texts have much in common.
TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
CRITIC = random_critic()


class CountingCritic:
    """Says how many tokens were read in each pass."""

    def __init__(self, critic: Critic) -> None:
        self._critic = critic
        self.passes = []

    def __getattr__(self, name):
        return getattr(self._critic, name)

    def read(self, token_ids, *rest):
        self.passes.append(tuple(token_ids.shape))
        return self._critic.read(token_ids, *rest)


@pytest.fixture
def counting():
    return CountingCritic(CRITIC)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(critic_rows, "_PIECE", 4)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def expected_risks(token_ids):
    with torch.no_grad():
        hidden = CRITIC.read(torch.tensor([token_ids]), torch.arange(len(token_ids))[None])
        taken = -CRITIC.q_of(hidden[0, :-1], torch.tensor(token_ids[1:], dtype=torch.long))
    return torch.cat((torch.zeros(1), taken))


class Churn(RuleBasedStateMachine):
    """Texts grow, are rolled back, replaced, forgotten and asked for in any company."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = CriticRows(CRITIC)
        self.texts = {}

    def ask(self, keys):
        texts = {key: self.texts[key] for key in keys if key in self.texts}
        q_values = self.rows.q_values(texts)
        assert q_values.shape == (len(texts), SHAPE.vocabulary)
        for row, token_ids in zip(q_values, texts.values(), strict=True):
            close(row, alone(CRITIC, token_ids))

    @rule(key=KEYS, text=TEXTS)
    def replace(self, key, text):
        self.texts[key] = text

    @rule(key=KEYS, source=KEYS, more=TEXTS)
    def branch(self, key, source, more):
        self.texts[key] = self.texts.get(source, []) + more

    @rule(more=TEXTS)
    def grow(self, more):
        self.texts = {key: text + more[:1] for key, text in self.texts.items()}
        self.ask(self.texts)

    @rule(key=KEYS, keep=st.integers(1, 6))
    def roll_back(self, key, keep):
        if key in self.texts:
            self.texts[key] = self.texts[key][:keep]

    @rule(keys=st.permutations(["a", "b", "c", "d"]), count=st.integers(0, 4))
    def some(self, keys, count):
        self.ask(keys[:count])

    @rule(key=KEYS)
    def forget(self, key):
        self.rows.forget(key)

    @rule(key=KEYS)
    def begin(self, key):
        assert self.rows.risks(key, []).shape == (0,)

    @rule(key=KEYS)
    def risks(self, key):
        if key in self.texts:
            risks = self.rows.risks(key, self.texts[key])
            close(risks, expected_risks(self.texts[key])[len(self.texts[key]) - len(risks) :])


def test_values_are_those_of_each_text_read_alone() -> None:
    run_state_machine_as_test(
        Churn, settings=settings(max_examples=60, stateful_step_count=20, deadline=None)
    )


def test_the_newest_tokens_of_all_texts_are_read_at_once(counting) -> None:
    rows = CriticRows(counting)
    rows.q_values({1: [5, 6, 7], 2: [8, 9]})
    counting.passes.clear()

    rows.q_values({2: [8, 9, 3], 1: [5, 6, 7, 4]})

    assert counting.passes == [(2, 1)]


def test_long_news_is_read_in_pieces(counting) -> None:
    CriticRows(counting).q_values({1: list(range(10))})

    assert counting.passes == [(1, 4), (1, 4), (1, 1), (1, 1)]


def test_what_texts_begin_with_is_read_once(counting) -> None:
    prompt = [5, 6, 7, 8]

    q_values = CriticRows(counting).q_values({1: prompt, 2: prompt, 3: [*prompt[:3], 1, 2]})

    assert counting.passes == [(1, 3), (1, 1), (3, 1)]
    close(q_values[2], alone(CRITIC, [5, 6, 7, 1, 2]))


def test_a_text_taken_back_is_not_read_again(counting) -> None:
    rows = CriticRows(counting)
    rows.q_values({1: [5, 6, 7, 8]})
    counting.passes.clear()

    rows.q_values({1: [5, 6]})

    assert counting.passes == [(1, 1)]


def test_a_text_left_out_for_a_while_is_still_known(counting) -> None:
    rows = CriticRows(counting)
    rows.q_values({1: [5, 6], 2: [7, 8]})
    rows.q_values({1: [5, 6, 1]})
    counting.passes.clear()

    rows.q_values({2: [7, 8, 1]})

    assert counting.passes == [(1, 1)]


def test_a_forgotten_text_gives_its_row_to_the_next(counting) -> None:
    rows = CriticRows(counting)
    rows.q_values({1: [5, 6], 2: [7, 8], 3: [1, 2]})
    rows.forget(2)
    rows.forget("never heard of")

    rows.q_values({4: [9, 9]})

    assert sorted(text.row for text in rows._texts.values()) == [0, 1, 2]


def test_when_all_is_forgotten_the_memory_is_given_back() -> None:
    rows = CriticRows(CRITIC)
    rows.q_values({1: [5, 6], 2: [7, 8]})

    rows.forget(1)
    rows.forget(2)

    assert all(layer.numel() == 0 for layer in rows._state._layers)
    close(rows.q_values({3: [7, 8]})[0], alone(CRITIC, [7, 8]))


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        CriticRows(CRITIC).q_values({1: [3], 2: []})


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5, unique=True).map(sorted))
@settings(deadline=None)
def test_the_risks_of_a_stream_are_those_of_the_whole_text(ends) -> None:
    text, rows = list(range(12)), CriticRows(CRITIC)

    risks = [rows.risks("stream", text[:end]) for end in ends]

    close(torch.cat(risks), expected_risks(text[: ends[-1]]))


def test_a_stream_that_said_nothing_is_forgotten_like_others() -> None:
    rows = CriticRows(CRITIC)
    for key in "abc":
        rows.risks(key, [])
    rows.forget("a")
    rows.forget("b")

    q_values = rows.q_values({"d": [5, 6, 7], "c": [5, 6, 8]})

    close(q_values[1], alone(CRITIC, [5, 6, 8]))


def test_risks_begin_anew_where_a_text_was_changed() -> None:
    rows = CriticRows(CRITIC)
    rows.risks("stream", [4, 5, 6, 7, 8])

    close(rows.risks("stream", [4, 5, 9, 7]), expected_risks([4, 5, 9, 7])[2:])
    assert rows.risks("stream", [4, 5]).shape == (0,)
    close(rows.risks("stream", [4, 5, 6]), expected_risks([4, 5, 6])[2:])
    assert rows.risks("another", []).shape == (0,)
