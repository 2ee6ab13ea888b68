from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from app.rectification.baselines import (
    bad_words,
    best_of_k,
    class_likelihood,
    dexperts,
    gedi,
    redo,
)


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


# Bad words


def test_a_bad_word_of_one_token_is_never_said() -> None:
    log_probs = bad_words(logits_of(0.5, 0.25, 0.25), [[0]])

    assert log_probs[0].exp().tolist() == pytest.approx([0, 0.5, 0.5])


def test_a_longer_bad_word_is_only_kept_from_ending() -> None:
    logits = torch.zeros(4, 5)
    written = [[4, 1, 2], [1], [2], []]

    log_probs = bad_words(logits, [[1, 2, 3], [2, 0]], written)

    forbidden = [(log_probs[row] == -math.inf).nonzero().flatten().tolist() for row in range(4)]
    assert forbidden == [[0, 3], [], [0], []]


def test_the_list_may_be_empty_but_not_a_word() -> None:
    logits = logits_of(0.5, 0.5)

    assert torch.equal(bad_words(logits, []), logits.log_softmax(-1))
    with pytest.raises(ValueError, match="no tokens"):
        bad_words(logits, [[0], []])


# GeDi


def test_the_class_likelihood_is_normalised_by_the_length() -> None:
    likelihood = class_likelihood(
        logits_of(0.25, 0.75), torch.tensor([[-3.0]]), length=4, scale=2.0, bias=0.5
    )

    expected = [2 * (-3 + math.log(p)) / 4 + 0.5 for p in (0.25, 0.75)]
    assert likelihood[0].tolist() == pytest.approx(expected)


def test_gedi_weighs_tokens_by_the_posterior_of_the_wanted_class() -> None:
    posterior = torch.tensor([[0.9, 0.5, 0.6]])

    log_probs = gedi(
        logits_of(0.2, 0.5, 0.3), posterior.log(), (1 - posterior).log(), omega=2, filter_p=0
    )

    weights = [0.2 * 0.9**2, 0.5 * 0.5**2, 0.3 * 0.6**2]
    assert log_probs[0].exp().tolist() == pytest.approx([w / sum(weights) for w in weights])


@pytest.mark.parametrize(
    ("filter_p", "kept"),
    [
        (0.0, [True, True, True, True]),
        (0.25, [True, True, False, True]),  # 0.2 is dropped, with 0.3 it would be more than 0.25
        (0.6, [True, False, False, True]),
        (1.0, [True, False, False, True]),  # those above target_p stay anyway
    ],
)
def test_gedi_drops_the_least_wanted_tokens(filter_p: float, kept: list[bool]) -> None:
    posterior = torch.tensor([[0.9, 0.5, 0.1, 0.85]])

    log_probs = gedi(
        logits_of(0.3, 0.3, 0.2, 0.2),
        posterior.log(),
        (1 - posterior).log(),
        omega=0,
        filter_p=filter_p,
        target_p=0.8,
    )

    assert log_probs[0].isfinite().tolist() == kept


def test_gedi_keeps_the_most_wanted_token_that_is_possible() -> None:
    posterior = torch.tensor([[0.2, 0.1, 0.9]])

    log_probs = gedi(logits_of(0.5, 0.5, 0.0), posterior.log(), (1 - posterior).log(), filter_p=1.5)

    assert log_probs[0].tolist() == [0.0, -math.inf, -math.inf]


# DExperts


def test_dexperts_adds_what_the_experts_differ_by() -> None:
    base, expert, anti = (
        logits_of(*p) for p in ((0.4, 0.35, 0.25), (0.5, 0.3, 0.2), (0.2, 0.3, 0.5))
    )

    log_probs = dexperts(base, expert, anti, alpha=2.0, top_p=1.0)

    weights = [0.4 * (0.5 / 0.2) ** 2, 0.35, 0.25 * (0.2 / 0.5) ** 2]
    assert log_probs[0].exp().tolist() == pytest.approx([w / sum(weights) for w in weights])


def test_dexperts_stays_in_the_nucleus_of_the_base_model() -> None:
    base = torch.cat([logits_of(0.1, 0.5, 0.3, 0.1, 0.0), logits_of(0.02, 0.98, 0.0, 0.0, 0.0)])
    wants_others = torch.tensor([[5.0, 0.0, 0.0, 5.0, -math.inf]]).expand(2, -1)

    log_probs = dexperts(base, wants_others, torch.zeros(2, 5), top_p=0.7)

    assert log_probs.isfinite().tolist() == [
        [False, True, True, False, False],
        [False, True, False, False, False],
    ]


def test_dexperts_keeps_the_likeliest_token_whatever_the_nucleus() -> None:
    log_probs = dexperts(logits_of(0.3, 0.7), torch.zeros(1, 2), torch.zeros(1, 2), top_p=0.0)

    assert log_probs[0].tolist() == [-math.inf, 0.0]


# Best of k with look-ahead


class Writer:
    """Candidate i writes i + 1 again and again; a text ends after `ends` tokens."""

    def __init__(self, ends: int = 1000) -> None:
        self.asked: list[int] = []
        self._ends = ends

    def generate(self, texts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
        self.asked.append(length)
        return [
            [token] * min(length, self._ends - len(text)) for token, text in enumerate(texts, 1)
        ]


def distance_from_two(texts: Sequence[Sequence[int]]) -> list[float]:
    return [abs(text[-1] - 2) for text in texts]


def test_each_block_is_the_least_risky_of_k() -> None:
    writer = Writer()

    text = best_of_k(
        [9, 9],
        length=5,
        k=3,
        block=2,
        look_ahead=2,
        generate=writer.generate,
        score=distance_from_two,
    )

    assert text == [2] * 5
    assert writer.asked == [4, 3, 1]  # never past the end of the text


def test_the_look_ahead_is_judged_but_not_kept() -> None:
    def generate(texts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
        return [[1, 7, 7][:length], [2, 0, 0][:length]]

    def sevens(texts: Sequence[Sequence[int]]) -> list[float]:
        return [text.count(7) for text in texts]

    def written(look_ahead: int) -> list[int]:
        return best_of_k(
            [],
            length=3,
            k=2,
            block=1,
            look_ahead=look_ahead,
            generate=generate,
            score=sevens,
        )

    assert written(look_ahead=0) == [1, 1, 1]  # of equals the first
    assert written(look_ahead=2) == [2, 2, 1]


def test_a_text_that_ends_early_is_not_continued() -> None:
    writer = Writer(ends=3)

    text = best_of_k(
        [9],
        length=10,
        k=2,
        block=4,
        look_ahead=0,
        generate=writer.generate,
        score=distance_from_two,
    )

    assert text == [2, 2]
    assert writer.asked == [4]


@pytest.mark.parametrize(("k", "block"), [(0, 1), (1, 0)])
def test_a_search_of_nothing_is_refused(k: int, block: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        best_of_k(
            [],
            length=1,
            k=k,
            block=block,
            look_ahead=0,
            generate=Writer().generate,
            score=distance_from_two,
        )


# Redo


class Risks:
    """A generator whose texts have the given risk at each strength."""

    def __init__(self, risks: dict[float, float]) -> None:
        self.asked: list[float] = []
        self._risks = risks

    def generate(self, strength: float) -> str:
        self.asked.append(strength)
        return f"text of {strength}"

    def score(self, text: str) -> float:
        return self._risks[float(text.removeprefix("text of "))]


def test_strength_is_raised_only_while_the_target_is_missed() -> None:
    risks = Risks({0.0: 0.9, 1.0: 0.3, 2.0: 0.1})

    redone = redo([0.0, 1.0, 2.0], risks.generate, risks.score, target=0.3)

    assert risks.asked == [0.0, 1.0]
    assert (redone.text, redone.strength, redone.risk, redone.tries) == ("text of 1.0", 1, 0.3, 2)


def test_where_no_strength_suffices_the_least_risky_text_is_taken() -> None:
    risks = Risks({0.0: 0.9, 1.0: 0.6, 2.0: 0.7})

    redone = redo([0.0, 1.0, 2.0], risks.generate, risks.score, target=0.5)

    assert (redone.text, redone.risk) == ("text of 1.0", 0.6)
    assert redone.tries == 3


def test_there_must_be_a_strength_to_try() -> None:
    with pytest.raises(ValueError, match="no strengths"):
        redo([], Risks({}).generate, Risks({}).score, target=0.5)
