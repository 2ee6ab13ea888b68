"""Streamed answers read token by token by the critic, which stops them at a running risk.

Knows nothing about decoding. The running risk is the one of the stream detector: the highest that
two tokens in a row have reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from app.domain.detection import OperatingPoint
from app.rectification.critic_model import Critic
from app.training import metrics
from app.training.critic.calibration import Trace, risk_logits, risks_of
from app.training.critic.measuring import running
from app.training.critic.texts import Layout, Text
from app.training.evaluation.sets import Row

ASIDE: Final = "answers aside"
CARD: Final = "critic's card"
OWN: Final = "this set itself"
"""Where a threshold comes from; the last one has seen the answers, and is for comparison only."""

LONGEST: Final = 512
"""Tokens of an answer that are read."""


@dataclass(frozen=True, slots=True)
class Stops:
    """Answers of one set at one threshold.

    `stopped` is the part of the unsafe ones that were stopped before their last token;
    `let_out` the median part, and `tokens_out` the median number, of their tokens that had left
    until then.
    """

    chosen_by: str
    threshold: float
    harmless: int
    unsafe: int
    harmless_stopped: float | None
    stopped: float | None
    let_out: float | None
    tokens_out: float | None


def traces(critic: Critic, layout: Layout, rows: Sequence[Row]) -> list[Trace]:
    """The running risk of each answer, token by token."""
    texts = [_text(layout, row) for row in rows]
    return [running(each) for each in risks_of(risk_logits(critic, texts))]


def threshold(so_far: Sequence[Trace], rows: Sequence[Row]) -> float:
    """The lowest running risk that stops at most 1 % of the harmless answers.

    Raises:
        ValueError: None is harmless.
    """
    peaks = [trace[-1] for trace, row in zip(so_far, rows, strict=True) if not row.unsafe]
    if not peaks:
        raise ValueError("a threshold needs harmless answers")
    return metrics.thresholds(np.asarray(peaks))[OperatingPoint.BALANCED]


def stops(
    so_far: Sequence[Trace], rows: Sequence[Row], thresholds: Mapping[str, float]
) -> list[Stops]:
    """What each threshold does to the answers."""
    pairs = list(zip(so_far, rows, strict=True))
    safe = [trace for trace, row in pairs if not row.unsafe]
    unsafe = [trace for trace, row in pairs if row.unsafe]
    found = []
    for chosen_by, limit in thresholds.items():
        early = [_before(trace, limit) for trace in unsafe]
        out = [(place, len(trace)) for place, trace in zip(early, unsafe, strict=True) if place]
        found.append(
            Stops(
                chosen_by,
                limit,
                len(safe),
                len(unsafe),
                _share([bool(trace[-1] >= limit) for trace in safe]),
                _share([place is not None for place in early]),
                round(median(place / length for place, length in out), 4) if out else None,
                float(median(place for place, _ in out)) if out else None,
            )
        )
    return found


def _text(layout: Layout, row: Row) -> Text:
    """An answer behind what it answers, as the critic has learnt to read them."""
    before = layout.chat(row.context)
    ids = (*before, *layout.tokens(row.text)[:LONGEST])
    return Text(ids, len(before), float(row.unsafe), "answer")


def _before(trace: Trace, limit: float) -> int | None:
    """How many tokens were out when the answer was stopped before its last one."""
    reached = np.flatnonzero(trace[:-1] >= limit)
    return int(reached[0]) + 1 if len(reached) else None


def _share(hits: Sequence[bool]) -> float | None:
    return round(sum(hits) / len(hits), 4) if hits else None
