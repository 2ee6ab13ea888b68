"""Fairness: whether who a text is about, or who speaks, moves the verdict.

Knows nothing about how a report looks.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from app.training import metrics
from app.training.evaluation.dialects import DIALECTS
from app.training.evaluation.figures import caught, truth
from app.training.evaluation.guises import (
    BIAS_SET,
    identity_families,
    name_families,
    own_families,
)
from app.training.evaluation.judging import Judge, Judged
from app.training.evaluation.progress import progress
from app.training.evaluation.sets import SEED, Row, TestSet, sample
from app.training.evaluation.suites.obfuscation import prompts

_FEWEST: Final = 20
"""A group with fewer harmless rows has no rate to speak of."""
_HATECHECK: Final = "hatecheck"
_PROMPTS: Final = 200
"""Prompts of each kind that are said in every dialect."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group: rates over the rows that speak of it."""

    rows: int
    fpr: float | None
    recall: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Families of sentences in which only one thing differs.

    `consistent` is the part of the families whose rows all got one verdict, `agreeing` the part of
    the rows that got the verdict of most in their family. The gaps are the largest rate of a group
    less the smallest one.
    """

    families: int
    rows: int
    consistent: float
    agreeing: float
    fpr_gap: float | None
    recall_gap: float | None
    groups: dict[str, Group]


@dataclass(frozen=True, slots=True)
class Function:
    """One functional test of HateCheck: the part of its rows that was judged right."""

    hateful: bool
    rows: int
    right: float


@dataclass(frozen=True, slots=True)
class FairnessResult:
    """By contestant: comparisons by what differs, functional tests by name."""

    comparisons: dict[str, dict[str, Comparison]]
    functions: dict[str, dict[str, Function]]


async def measure(judge: Judge, sets: Sequence[TestSet], limit: int = 0) -> FairnessResult:
    """Judge every family of sentences, and the functional tests that are among `sets`.

    Of each comparison and of the functional tests at most `limit` rows (0: all), families whole.
    """
    comparisons: dict[str, dict[str, Comparison]] = {name: {} for name in judge.contestants}
    for what, every in _families(sets).items():
        rows = _whole_families(every, limit)
        with progress(what, len(rows)) as step:
            judged = await judge.judge(rows, step)
        for name in judge.contestants:
            comparisons[name][what] = _comparison(rows, judged, name)
    functions: dict[str, dict[str, Function]] = {name: {} for name in judge.contestants}
    rows = sample(_functional(sets), limit, "functional")
    with progress("functional tests", len(rows)) as step:
        judged = await judge.judge(rows, step)
    for name in judge.contestants:
        functions[name] = _functions(rows, judged, name)
    return FairnessResult(comparisons, functions)


def _families(sets: Sequence[TestSet]) -> dict[str, list[Row]]:
    """What differs -> rows of all families; without the project's sets, those of the file alone."""
    families = {"group": identity_families(sets)}
    if any(test.name == BIAS_SET for test in sets):
        families["name"] = name_families(sets)
        families["group, own sentences"] = own_families()
    families.update({f"dialect: {name}": _spoken(sets, name) for name in DIALECTS})
    return {what: rows for what, rows in families.items() if rows}


def _whole_families(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` rows (0: all) of a fixed sample of families, and one family at least."""
    if not limit or len(rows) <= limit:
        return list(rows)
    sizes = Counter(row.family for row in rows)
    names = sorted(sizes)
    random.Random(SEED).shuffle(names)  # noqa: S311 - fixed
    chosen: set[str] = set()
    taken = 0
    for name in names:
        if not chosen or taken + sizes[name] <= limit:
            chosen.add(name)
            taken += sizes[name]
    return [row for row in rows if row.family in chosen]


def _spoken(sets: Sequence[TestSet], dialect: str) -> list[Row]:
    """Each prompt in plain words and in the dialect, where that changes it."""
    change = DIALECTS[dialect]
    rows = []
    for row in prompts(sets, _PROMPTS):
        spoken = change(row.text)
        if spoken != row.text:
            plain = replace(row, family=row.id, group="plain")
            rows += [plain, replace(plain, text=spoken, group=dialect)]
    return rows


def _comparison(rows: Sequence[Row], judged: Sequence[Judged], name: str) -> Comparison:
    families: defaultdict[str, list[bool]] = defaultdict(list)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, (row, each) in enumerate(zip(rows, judged, strict=True)):
        families[row.family].append(each.by[name].caught)
        places[row.group].append(index)
    several = [verdicts for verdicts in families.values() if len(verdicts) > 1]
    most = [Counter(verdicts).most_common(1)[0][1] for verdicts in several]
    size = sum(map(len, several))
    groups = {
        group: _group([rows[i] for i in chosen], [judged[i] for i in chosen], name)
        for group, chosen in sorted(places.items())
        if sum(not rows[i].unsafe for i in chosen) >= _FEWEST
    }
    consistent = sum(len(set(verdicts)) == 1 for verdicts in several)
    return Comparison(
        families=len(several),
        rows=size,
        consistent=round(consistent / len(several), 4) if several else 1.0,
        agreeing=round(sum(most) / size, 4) if several else 1.0,
        fpr_gap=_gap([group.fpr for group in groups.values()]),
        recall_gap=_gap([group.recall for group in groups.values()]),
        groups=groups,
    )


def _group(rows: Sequence[Row], judged: Sequence[Judged], name: str) -> Group:
    decided = metrics.decided(truth(rows), caught([each.by[name] for each in judged]))
    return Group(len(rows), decided["fpr"], decided["recall"])


def _gap(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return round(max(known) - min(known), 4) if len(known) > 1 else None


def _functional(sets: Sequence[TestSet]) -> list[Row]:
    """HateCheck's rows, or those of a file of one's own that are labelled like them."""
    own = not any(test.name == BIAS_SET for test in sets)
    tests = [test for test in sets if own or test.name == _HATECHECK]
    return [row for test in tests for row in test.rows if _function(row)]


def _function(row: Row) -> str:
    """The functional test of a row of HateCheck: its label that ends in `_h` or `_nh`."""
    return next((label for label in row.labels if label.endswith(("_h", "_nh"))), "")


def _functions(rows: Sequence[Row], judged: Sequence[Judged], name: str) -> dict[str, Function]:
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for row, each in zip(rows, judged, strict=True):
        right[_function(row)].append(each.by[name].caught == row.unsafe)
    return {
        test: Function(test.endswith("_h"), len(found), round(sum(found) / len(found), 4))
        for test, found in sorted(right.items())
    }
