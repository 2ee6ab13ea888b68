"""Published neighbours of the cap and the tilt, to be measured beside them.

Knows nothing about models, tokenizers or critics: other models' scores come in as tensors, and
generators and scorers as callables. Those that work on one step take `logits` (batch, vocabulary)
and return `log_probs` as `rectify.py` does; those that work on whole texts choose between what
`generate` wrote by what `score` says. Reward-Augmented Decoding and Value Augmented Sampling are
`rectify.tilt`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from app.rectification.rectify import log_probs_of

Tokens = Sequence[int]
Text = TypeVar("Text")


def bad_words(
    logits: Tensor, token_ids: Sequence[Tokens], written: Sequence[Tokens] = ()
) -> Tensor:
    """Return the model's distribution without the tokens that would finish a bad word.

    Source: the word filter of RealToxicityPrompts (Gehman et al., Findings of EMNLP 2020,
    arXiv 2009.11462): z_i <- minus infinity for those tokens.

    Args:
        logits: (batch, vocabulary).
        token_ids: the bad words; of a word of several tokens the last is taken away, in rows that
            end with the others.
        written: the text of each row so far; without it only words of one token are found.

    Raises:
        ValueError: a bad word has no tokens.
        IndexError: a bad word has a token that is not in the vocabulary.
    """
    if not all(token_ids):
        raise ValueError("a bad word has no tokens")
    allowed = logits.clone()
    allowed[:, [word[-1] for word in token_ids if len(word) == 1]] = -math.inf
    for row, text in enumerate(written):
        ends = [word[-1] for word in token_ids if list(text[1 - len(word) :]) == list(word[:-1])]
        allowed[row, ends] = -math.inf
    return log_probs_of(allowed)


def class_likelihood(
    next_logits: Tensor,
    past: Tensor,
    length: Tensor | int,
    scale: float = 1.0,
    bias: float = 0.0,
) -> Tensor:
    """Return how likely the text with each next token is under one class, as `gedi` needs it.

    Source: GeDi (Krause et al., Findings of EMNLP 2021, arXiv 2009.06367), the length-normalised
    log-likelihood: scale / t * sum log P(x_i | x_<i, class) + bias.

    Args:
        next_logits: (batch, vocabulary), of the class-conditional model for the next token.
        past: (batch, 1), the sum of its log-probabilities of the tokens so far, in nats.
        length: how many tokens `past` and the next one are together, or (batch, 1) of them.
        scale: the model's learned scale.
        bias: the model's learned bias of the class, plus what is asked for by hand.
    """
    return scale * (past + log_probs_of(next_logits)) / length + bias


def gedi(
    logits: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    omega: float = 30.0,
    filter_p: float = 0.8,
    target_p: float = 0.8,
) -> Tensor:
    """Return p' proportional to p P(positive | text, token)^omega, less the least positive tokens.

    The tokens are dropped from the least positive on, as long as they hold less than `filter_p`
    of the guided probability and their own P(positive) is below `target_p`; the most positive one
    stays. Source: GeDi (Krause et al., Findings of EMNLP 2021, arXiv 2009.06367): Bayes' rule over
    two class-conditional models, weighted posterior and filtering, with the defaults of its code.

    Args:
        logits: (batch, vocabulary), of the model that is steered.
        positive: (batch, vocabulary), `class_likelihood` under the wanted class.
        negative: (batch, vocabulary), the same under the unwanted class.
        omega: weight of the posterior.
        filter_p: how much guided probability may be dropped, 1 - rho in the paper.
        target_p: P(positive) from which a token stays anyway, tau in the paper.
    """
    posterior = torch.stack([positive, negative], -1).float().log_softmax(-1)[..., 0]
    guided = log_probs_of(log_probs_of(logits) + omega * posterior)
    # Tokens that are never come first, so that the last in the order is one that can stay.
    posterior, order = posterior.masked_fill(logits == -math.inf, -math.inf).sort(-1)
    dropped = guided.gather(-1, order).exp().cumsum(-1) < filter_p
    dropped &= posterior < math.log(target_p)
    dropped[:, -1] = False
    return log_probs_of(guided.masked_fill(dropped.scatter(-1, order, dropped), -math.inf))


def dexperts(
    logits: Tensor, expert: Tensor, anti_expert: Tensor, alpha: float = 2.0, top_p: float = 0.9
) -> Tensor:
    """Return softmax(z + alpha (z_expert - z_anti_expert)) on the nucleus of z.

    Source: DExperts (Liu et al., ACL 2021, arXiv 2105.03023), the ensemble of logits, with the
    defaults of its code, which filters the base model first.

    Args:
        logits: (batch, vocabulary), of the model that is steered.
        expert: (batch, vocabulary), logits of a model of wanted text.
        anti_expert: (batch, vocabulary), logits of a model of unwanted text.
        alpha: strength.
        top_p: the likeliest tokens that together hold this much of the base model stay.
    """
    log_probs, order = log_probs_of(logits).sort(-1, descending=True)
    before = log_probs.exp().cumsum(-1) - log_probs.exp()
    cut = before >= top_p
    cut[:, 0] = False
    cut = cut.scatter(-1, order, cut) | (logits == -math.inf)
    return log_probs_of((logits + alpha * (expert - anti_expert)).masked_fill(cut, -math.inf))


def best_of_k(
    prompt: Tokens,
    *,
    length: int,
    k: int,
    block: int,
    look_ahead: int,
    generate: Callable[[Sequence[Tokens], int], Sequence[Tokens]],
    score: Callable[[Sequence[Tokens]], Sequence[float]],
) -> list[int]:
    """Write a text block by block, each time the block of k whose look-ahead is least risky.

    With `block = length` and no look-ahead this is best-of-k of whole texts. Source: DeAL (Huang
    et al., 2024, arXiv 2402.06147), log P + lambda h(text with look-ahead); here the candidates are
    samples, which brings log P in by how often they are drawn, and h alone decides between them.

    Args:
        prompt: what stands before the text; not returned.
        length: tokens to write at most.
        k: candidates of each step; the first of equals is taken.
        block: tokens that a step adds.
        look_ahead: further tokens that are written to be scored, and then thrown away.
        generate: (texts, n) -> of each text a sampled continuation of n tokens; fewer end it.
        score: texts, the prompt included -> the risk of each.

    Raises:
        ValueError: `k` or `block` is below 1.
    """
    if k < 1 or block < 1:
        raise ValueError("k and block must be at least 1")
    text = list(prompt)
    while (left := len(prompt) + length - len(text)) > 0:
        futures = generate([text] * k, min(block + look_ahead, left))
        risks = score([[*text, *future] for future in futures])
        best = min(range(k), key=risks.__getitem__)
        text += futures[best][:block]
        if len(futures[best]) < min(block, left):
            break
    return text[len(prompt) :]


@dataclass(frozen=True, slots=True)
class Redone(Generic[Text]):
    """The text that `redo` chose, the strength it was written with, its risk, and the tries."""

    text: Text
    strength: float
    risk: float
    tries: int


def redo(
    strengths: Sequence[float],
    generate: Callable[[float], Text],
    score: Callable[[Text], float],
    target: float,
) -> Redone[Text]:
    """Write again with more strength only while the finished text misses the target.

    Where no strength reaches it, the least risky text is returned. Source: the redo mechanism of
    UDDIA (Yang et al., ICLR 2023, arXiv 2210.04492), which replays a text with another number of
    tuned layers when its perplexity misses a threshold; here any strength and any score.

    Args:
        strengths: from the gentlest on.
        generate: strength -> finished text.
        score: finished text -> its risk.
        target: the risk that is good enough.

    Raises:
        ValueError: there are no strengths.
    """
    best: Redone[Text] | None = None
    for tries, strength in enumerate(strengths, start=1):
        text = generate(strength)
        risk = score(text)
        if best is None or risk < best.risk:
            best = Redone(text, strength, risk, tries)
        best = replace(best, tries=tries)
        if risk <= target:
            break
    if best is None:
        raise ValueError("no strengths to try")
    return best
