from __future__ import annotations

from collections import Counter

import pytest
import torch

from app.generation.request import Sampling
from app.generation.sampling import Sampler

SCORES = torch.tensor([0.0, 3.0, 2.0, 1.0])


def drawn(sampling: Sampling, times: int = 50, choice: int = 0) -> list[int]:
    sampler = Sampler(sampling, choice)
    return [sampler.choose(SCORES) for _ in range(times)]


def test_greedy_takes_the_best() -> None:
    assert set(drawn(Sampling(temperature=0))) == {1}


def test_the_same_seed_draws_the_same_tokens() -> None:
    assert drawn(Sampling(temperature=1, seed=5)) == drawn(Sampling(temperature=1, seed=5))


def test_choices_of_one_seed_differ() -> None:
    sampling = Sampling(temperature=1, seed=5)

    assert drawn(sampling, choice=0) != drawn(sampling, choice=1)


def test_without_a_seed_draws_differ() -> None:
    assert drawn(Sampling(temperature=2)) != drawn(Sampling(temperature=2))


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_the_widest_seeds_are_taken(seed: int) -> None:
    drawn(Sampling(temperature=1, seed=seed), times=1, choice=3)


def test_draws_follow_the_softmax() -> None:
    counts = Counter(drawn(Sampling(temperature=1, seed=1), times=4000))
    expected = SCORES.softmax(-1)

    for token, probability in enumerate(expected):
        assert counts[token] / 4000 == pytest.approx(float(probability), abs=0.03)


def test_top_k_keeps_the_best() -> None:
    assert set(drawn(Sampling(temperature=2, top_k=2, seed=1))) == {1, 2}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert set(drawn(Sampling(temperature=1, top_p=0.8, seed=1))) == {1, 2}  # 0.64 + 0.24
    assert set(drawn(Sampling(temperature=1, top_p=0.5, seed=1))) == {1}
    assert set(drawn(Sampling(temperature=1, top_p=0, seed=1))) == {1}


def test_a_tiny_temperature_is_greedy() -> None:
    assert set(drawn(Sampling(temperature=1e-30, seed=1))) == {1}


def test_penalties_lower_what_was_chosen() -> None:
    frequency = drawn(Sampling(frequency_penalty=0.75), times=6)
    presence = drawn(Sampling(presence_penalty=1.5), times=4)

    assert frequency == [1, 1, 2, 1, 2, 3]
    assert presence == [1, 2, 1, 1]


def test_scores_stay_as_they_were() -> None:
    before = SCORES.clone()
    drawn(Sampling(temperature=1, frequency_penalty=1, presence_penalty=1, top_p=0.9))

    assert torch.equal(before, SCORES)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_impossible_scores_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="no token"):
        Sampler(Sampling(), 0).choose(torch.tensor([1.0, bad]))


def test_a_token_ruled_out_is_never_drawn() -> None:
    sampler = Sampler(Sampling(temperature=2, seed=1), 0)
    scores = torch.tensor([float("-inf"), 1.0, float("-inf"), 1.0])

    assert {sampler.choose(scores) for _ in range(30)} == {1, 3}


LOG_PROBS = torch.tensor([0.1, 0.0, 0.6, 0.3]).log()


def drawn_rectified(sampling: Sampling, times: int = 50) -> list[int]:
    sampler = Sampler(sampling, 0)
    return [sampler.choose_rectified(LOG_PROBS) for _ in range(times)]


def test_what_was_rectified_is_drawn_from_as_it_is() -> None:
    """Temperature, top-k and top-p are in it already."""
    sampling = Sampling(temperature=0.3, top_k=2, top_p=0.4, seed=1)
    counts = Counter(drawn_rectified(sampling, times=4000))

    for token, log_prob in enumerate(LOG_PROBS):
        assert counts[token] / 4000 == pytest.approx(float(log_prob.exp()), abs=0.03)
    assert 1 not in counts


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1e-30), Sampling(temperature=1, top_k=1)], ids=str
)
def test_greedy_takes_the_best_of_what_was_rectified(sampling: Sampling) -> None:
    assert set(drawn_rectified(sampling)) == {2}


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_rectification_that_allows_no_token_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="no token"):
        Sampler(Sampling(), 0).choose_rectified(torch.tensor([bad, bad]))


def test_tokens_that_were_taken_back_are_not_penalised() -> None:
    sampler = Sampler(Sampling(presence_penalty=1.0, frequency_penalty=0.5), 0)
    assert [sampler.choose(SCORES) for _ in range(3)] == [1, 2, 1]

    sampler.take_back([2, 1])
    torch.testing.assert_close(sampler.penalised(SCORES), torch.tensor([0.0, 1.5, 2.0, 1.0]))
    sampler.take_back([1])

    torch.testing.assert_close(sampler.penalised(SCORES), SCORES)
