"""Figures of merit of one contestant on one set of rows: overall and label by label.

Knows nothing about how the rows were judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.training import metrics
from app.training.evaluation.judging import Judgement
from app.training.evaluation.sets import Row

FEWEST: Final = 10
"""A label with fewer rows tells nothing, and some sources give every row its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a set that carry one label."""

    rows: int
    unsafe: int
    recall: float | None
    fpr: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """One contestant on one set. A figure that the set cannot give is None.

    The first group needs scores only; the second one is what the shipped thresholds decide.
    """

    auroc: float | None
    auprc: float | None
    tpr_at_fpr_1: float | None
    tpr_at_fpr_01: float | None
    ece: float
    precision: float | None
    recall: float | None
    f1: float | None
    fpr: float | None
    failed: int
    labels: dict[str, Part]


def figures(rows: Sequence[Row], judged: Sequence[Judgement]) -> Figures:
    """All figures of one contestant on one set."""
    labels = truth(rows)
    scores = np.asarray([each.score for each in judged], np.float64)
    decided = metrics.decided(labels, caught(judged))
    ranking = metrics.ranking(labels, scores)
    return Figures(
        auroc=ranking["auroc"],
        auprc=ranking["auprc"],
        tpr_at_fpr_1=metrics.tpr_at_fpr(labels, scores, 0.01),
        tpr_at_fpr_01=metrics.tpr_at_fpr(labels, scores, 0.001),
        ece=metrics.expected_calibration_error(labels, scores),
        precision=decided["precision"],
        recall=decided["recall"],
        f1=decided["f1"],
        fpr=decided["fpr"],
        failed=sum(each.failed for each in judged),
        labels=_by_label(rows, judged),
    )


def truth(rows: Iterable[Row]) -> metrics.Scores:
    """1.0 for each unsafe row, 0.0 for the others."""
    return np.asarray([row.unsafe for row in rows], np.float64)


def caught(judged: Iterable[Judgement]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows would be blocked."""
    return np.asarray([each.caught for each in judged], np.bool_)


def _by_label(rows: Sequence[Row], judged: Sequence[Judgement]) -> dict[str, Part]:
    places: defaultdict[str, list[int]] = defaultdict(list)
    several_languages = len({row.language for row in rows}) > 1
    for index, row in enumerate(rows):
        for label in dict.fromkeys(row.labels):
            places[label].append(index)
        if several_languages:
            places[f"language: {row.language or 'not said'}"].append(index)
    return {
        label: _part([rows[index] for index in chosen], [judged[index] for index in chosen])
        for label, chosen in sorted(places.items())
        if len(chosen) >= FEWEST
    }


def _part(rows: Sequence[Row], judged: Sequence[Judgement]) -> Part:
    labels = truth(rows)
    decided = metrics.decided(labels, caught(judged))
    return Part(len(rows), int(labels.sum()), decided["recall"], decided["fpr"])
