import pytest
import torch
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.rectification.sampling import Sampling, cut, divisors

SAMPLINGS = [
    Sampling(),
    Sampling(0.7, top_p=0.9),
    Sampling(1.5, top_k=5),
    Sampling(0.3, top_k=7, top_p=0.5),
    Sampling(1.0, top_p=0.01),
    Sampling(2.0, top_k=1000),
]


def filtered(logits, samplings):
    return cut(logits / divisors(samplings, logits.device), samplings)


def by_transformers(logits, sampling):
    logits = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    return TopPLogitsWarper(sampling.top_p)(None, logits) if sampling.top_p < 1 else logits


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_filtered_as_transformers_would_filter_it_alone(seed):
    torch.manual_seed(seed)
    logits = 4 * torch.randn(len(SAMPLINGS), 50)
    logits[:, 3] = -torch.inf
    together = filtered(logits, SAMPLINGS)
    for row, sampling in enumerate(SAMPLINGS):
        assert torch.equal(together[row], by_transformers(logits[row : row + 1], sampling)[0])


@pytest.mark.parametrize("spread", [0.01, 1.0, 1.8, 4.0])
@pytest.mark.parametrize("top_k", [0, 30, 1024, 1500])
def test_a_vocabulary_is_filtered_the_same_whether_the_best_tokens_do_or_not(spread, top_k):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(2, 4000, generator=generator)
    sampling = Sampling(1.0, top_k, 0.9)
    together = filtered(logits, [sampling, Sampling()])
    assert torch.equal(together[:1], by_transformers(logits[:1], sampling))
    assert torch.equal(together[1], logits[1])


def test_a_greedy_row_is_left_whole():
    logits = torch.randn(2, 10)
    result = filtered(logits, [Sampling(0.0, top_k=2, top_p=0.1), Sampling(1.0, top_k=2)])
    assert torch.equal(result[0], logits[0])
    assert int(result[1].isfinite().sum()) == 2


def test_a_row_without_top_p_keeps_probabilities_that_round_to_nothing():
    logits = torch.tensor([[0.0, -200.0, -300.0], [0.0, -200.0, -300.0]])
    result = filtered(logits, [Sampling(), Sampling(top_p=0.5)])
    assert bool(result[0].isfinite().all())
    assert int(result[1].isfinite().sum()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_a_sampling_is_validated(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_as_many_tokens_are_left_as_the_caps_need():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(3, 1)
    caps = torch.tensor([[0.5, 0.3, 0.3, 1.0], [1.0, 1.0, 1.0, 1.0], [0.1, 0.1, 0.1, 0.1]])
    result = cut(logits, [Sampling(top_p=0.3), Sampling(top_k=2), Sampling(top_k=2)], caps)
    assert result.isfinite().sum(-1).tolist() == [3, 2, 4]


def test_top_k_1_is_greedy():
    assert Sampling(0.7, top_k=1).greedy
    assert Sampling(0.7, top_k=1).divisor == 1.0
