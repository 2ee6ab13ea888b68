"""Makes -Q of a critic the share of texts that do turn out unsafe, on rollouts it never saw.

Knows nothing about training or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from app.rectification.critic_model import Critic
from app.training.critic.fitting import padded
from app.training.critic.texts import Text

Trace = NDArray[np.float64]
"""One number for each judged token of a text, in order."""

_BATCH_TOKENS = 8192


@torch.inference_mode()
def risk_logits(critic: Critic, texts: Sequence[Text]) -> list[Trace]:
    """The logit of -Q of every judged token, each before it was read, in full precision."""
    device = critic.frequencies.device
    found: list[Trace] = [np.zeros(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids))
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order) and len(texts[order[stop]].ids) * (stop + 1 - start) <= _BATCH_TOKENS
        ):
            stop += 1
        rows = order[start:stop]
        ids, positions, judged = padded([texts[row] for row in rows])
        ids = ids.to(device)
        hidden = critic.read(ids, positions)
        logits = critic.logits_of(hidden[:, :-1], ids[:, 1:]).cpu()
        for row, each, counts in zip(rows, logits, judged, strict=True):
            found[row] = each[counts].double().numpy()
        start = stop
    return found


def platt(logits: Sequence[Trace], texts: Sequence[Text]) -> tuple[float, float]:
    """Slope and offset with the least cross-entropy against the soft returns; all tokens alike.

    A text with risk p counts as an unsafe one with weight p and a safe one with weight 1 - p.
    """
    values = np.concatenate(logits).reshape(-1, 1)
    returns = returns_of(texts)
    labels = np.repeat([1, 0], len(values))
    fit = LogisticRegression(C=1e6).fit(
        np.concatenate((values, values)),
        labels,
        sample_weight=np.concatenate((returns, 1 - returns)),
    )
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def returns_of(texts: Sequence[Text]) -> Trace:
    """The return of every judged token, as the probability that its finished text is unsafe."""
    return np.repeat([text.risk for text in texts], [text.judged for text in texts])


def risks_of(logits: Sequence[Trace]) -> list[Trace]:
    """Logits as probabilities."""
    return [1 / (1 + np.exp(-each)) for each in logits]


def calibrate(critic: Critic, texts: Sequence[Text]) -> tuple[float, float]:
    """Fold a temperature and an offset into the critic's weights; return both."""
    slope, offset = platt(risk_logits(critic, texts), texts)
    critic.recalibrate(slope, offset)
    return slope, offset
