"""Figures of a moderator in training: on the dev sets and on rows held out of training.

Knows nothing about how it is trained. Quick: long texts are read in their first window only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.domain.conversation import Stage
from app.training import metrics
from app.training.corpus.datasets import Sample, labels_of
from app.training.moderator.fitting import logits_of
from app.training.moderator.mixture import WINDOW, Layout
from app.training.moderator.network import Network
from app.training.outputs import STAGES

ORDINARY: Final = frozenset(
    {"instruct_benign", "alpaca_benign", "dolly_benign", "toxicdetector_sharegpt"}
)
"""Sources of everyday prompts: their false alarms are what an operating point budgets."""
CONTESTED: Final = frozenset({"dices990", "saferlhf_test", "rtp_continuations"})
"""Sources whose harmless responses split their raters, or come from provoking prompts."""
HARD: Final = frozenset({"cyberseceval_frr", "guardreasoner_mix", "piguard_valid"})
"""Sources whose harmless rows look harmful."""


def budgeted(samples: Sequence[Sample], stage: Stage) -> NDArray[np.bool_]:
    """Whose false alarms an operating point budgets: harmless everyday prompts and answers."""
    safe = labels_of(samples, stage) == 0
    if stage is Stage.INPUT:
        usual = [sample.source in ORDINARY for sample in samples]
    else:
        usual = [s.role == "response" and s.source not in CONTESTED for s in samples]
    budget: NDArray[np.bool_] = safe & np.asarray(usual)
    return budget


def framed(samples: Sequence[Sample], layout: Layout) -> list[list[int]]:
    """The first window of every sample, with its context, as the model gets it."""
    return [
        layout.frame(
            layout.tokens(sample.text)[:WINDOW],
            layout.tokens(sample.context) if sample.context else None,
        )
        for sample in samples
    ]


def evaluator(
    samples: Sequence[Sample], layout: Layout
) -> Callable[[Network], Mapping[str, float]]:
    """Measures a network on `samples`, whose token ids are made once."""
    rows = framed(samples, layout)

    def evaluate(network: Network) -> Mapping[str, float]:
        return figures(samples, logits_of(network, rows, padding=layout.padding))

    return evaluate


def figures(samples: Sequence[Sample], logits: NDArray[np.float32]) -> dict[str, float]:
    """AUPRC by role, and what a budget of 1 % on everyday prompts catches and costs."""
    roles = np.asarray([sample.role for sample in samples])
    sources = [sample.source for sample in samples]
    found: dict[str, float] = {}
    for role in ("prompt", "comment", "response"):
        stage = Stage.OUTPUT if role == "response" else Stage.INPUT
        labels = labels_of(samples, stage)
        wanted = (roles == role) & ~np.isnan(labels)
        if len(set(labels[wanted].tolist())) > 1:
            scores = logits[wanted, STAGES.index(stage)].astype(np.float64)
            ranked = metrics.ranking(labels[wanted], scores)
            found[f"{role}_auprc"] = ranked["auprc"] or 0.0
    labels = labels_of(samples, Stage.INPUT)
    scores = logits[:, STAGES.index(Stage.INPUT)].astype(np.float64)
    ordinary = np.asarray([source in ORDINARY for source in sources]) & (labels == 0)
    hard = np.asarray([source in HARD for source in sources]) & (labels == 0)
    unsafe = (labels == 1) & (roles == "prompt")
    if ordinary.any():
        threshold = np.quantile(scores[ordinary], 0.99)
        for name, rows in (("recall_at_1pct", unsafe), ("hard_fpr_at_1pct", hard)):
            if rows.any():
                found[name] = round(float((scores[rows] > threshold).mean()), 4)
    return found
