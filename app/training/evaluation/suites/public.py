"""The public sets: every figure of every contestant on every set.

Knows nothing about how a report looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from app.domain.categories import Category
from app.training.evaluation.figures import Figures, figures
from app.training.evaluation.floor import FLOOR, FloorJudge
from app.training.evaluation.goals import Reached, reached, read_goals
from app.training.evaluation.judging import CASCADE, Judge, Judgement
from app.training.evaluation.kinds import Kind, kinds, read_labels
from app.training.evaluation.latency import Latency, latency
from app.training.evaluation.progress import progress
from app.training.evaluation.sets import TestSet

LIMIT: Final = 6_000
"""Rows per set unless asked otherwise: all of every set that others publish figures for."""


@dataclass(frozen=True, slots=True)
class SetResult:
    """One set: its size, and each contestant's figures."""

    name: str
    role: str
    rows: int
    of_rows: int
    unsafe: int
    by: dict[str, Figures]


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """One set with every contestant's judgements: what curves are drawn from."""

    test: TestSet
    by: Mapping[str, Sequence[Judgement]]


@dataclass(frozen=True, slots=True)
class PublicResult:
    """All figures of the suite. `kinds` is by contestant."""

    sets: list[SetResult]
    kinds: dict[str, dict[Category, Kind]]
    latency: dict[str, Latency]
    goals: list[Reached]


async def judge_sets(
    judge: Judge, sets: Sequence[TestSet], floor: FloorJudge | None
) -> list[JudgedSet]:
    """Every row of every set, judged once by each contestant."""
    judged = []
    for test in sets:
        with progress(test.name, len(test.rows)) as step:
            answers = await judge.judge(test.rows, step)
        by: dict[str, Sequence[Judgement]] = {
            name: [answer.by[name] for answer in answers] for name in judge.contestants
        }
        if floor is not None:
            by[FLOOR] = floor.judge(test.rows)
        judged.append(JudgedSet(test, by))
    return judged


async def measure(judge: Judge, judged: Sequence[JudgedSet]) -> PublicResult:
    """The figures of sets that were judged, and the time that one text takes."""
    results = [_set_result(each) for each in judged]
    times = await latency(judge, [each.test for each in judged])
    known = read_labels()
    by_kind = {
        name: kinds([(each.test, each.by[name]) for each in judged], known)
        for name in judge.contestants
    }
    return PublicResult(results, by_kind, times, _goals(judge, results, times))


def _set_result(judged: JudgedSet) -> SetResult:
    test = judged.test
    return SetResult(
        name=test.name,
        role=test.role,
        rows=len(test.rows),
        of_rows=test.of_rows,
        unsafe=sum(row.unsafe for row in test.rows),
        by={name: figures(test.rows, answers) for name, answers in judged.by.items()},
    )


def _goals(
    judge: Judge, results: Sequence[SetResult], times: Mapping[str, Latency]
) -> list[Reached]:
    """The cascade's figures beside the goals; the time is that of the first model."""
    measured = {each.name: asdict(each.by[CASCADE]) for each in results}
    if judge.detectors and judge.detectors[0] in times:
        measured["latency"] = asdict(times[judge.detectors[0]])
    found = [reached(goal, measured.get(goal.set, {})) for goal in read_goals("public")]
    return [each for each in found if each is not None]
