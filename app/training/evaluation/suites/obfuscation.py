"""Hidden prompts: how much of what is caught in plain words is still caught under each attack.

Knows nothing about how a report looks. The same attacks on harmless prompts tell detection from a
wrapper that always fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.training import metrics
from app.training.evaluation.attacks import Attack, battery
from app.training.evaluation.figures import caught, truth
from app.training.evaluation.goals import Reached, reached, read_goals
from app.training.evaluation.judging import CASCADE, Judge, Judged
from app.training.evaluation.progress import progress
from app.training.evaluation.sets import Row, TestSet, sample

LIMIT: Final = 300
"""Prompts of each kind, unsafe and harmless, unless asked otherwise."""

_DEAR_LIMIT: Final = 40
_UNSAFE: Final = frozenset(
    {"harmbench", "jailbreakbench", "malicious_instruct", "simple_safety_tests", "strongreject"}
)
_HARMLESS: Final = frozenset({"jailbreakbench", "toxicchat_test", "wildguard_test"})
_NOT_ATTACKED: Final = frozenset({"copyright"})
"""Requests for a song's words are in HarmBench; who hides one hides nothing unsafe to a guard."""


@dataclass(frozen=True, slots=True)
class AttackResult:
    """One attack and one contestant. `kept` is recall under attack over recall in plain words.

    `auroc` tells unsafe from harmless prompts under the same attack.
    """

    attack: str
    family: str
    unsafe: int
    harmless: int
    clean_recall: float | None
    recall: float | None
    kept: float | None
    clean_fpr: float | None
    fpr: float | None
    auroc: float | None


@dataclass(frozen=True, slots=True)
class ObfuscationResult:
    """Every attack by contestant. `kept` is the mean over attacks, none counted over 1."""

    attacks: dict[str, list[AttackResult]]
    kept: dict[str, float | None]
    goals: list[Reached]


def prompts(sets: Sequence[TestSet], limit: int) -> list[Row]:
    """At most `limit` unsafe prompts and as many harmless ones, the same every time.

    From the sets that are about prompts; from a file of one's own, all of them.
    """
    own = not any(test.name in _UNSAFE for test in sets)
    rows = [(test.name, row) for test in sets for row in test.rows if row.role == "prompt"]
    unsafe = [
        row
        for name, row in rows
        if row.unsafe and (own or (name in _UNSAFE and not _NOT_ATTACKED & {*row.labels}))
    ]
    harmless = [row for name, row in rows if not row.unsafe and (own or name in _HARMLESS)]
    return [*sample(unsafe, limit, "unsafe"), *sample(harmless, limit, "harmless")]


async def measure(judge: Judge, rows: Sequence[Row]) -> ObfuscationResult:
    """Judge `rows` in plain words and under every attack."""
    with progress("plain", len(rows)) as step:
        plain = await judge.judge(rows, step)
    found: dict[str, list[AttackResult]] = {name: [] for name in judge.contestants}
    for attack in battery():
        chosen = _chosen(rows, attack)
        hidden = [attack.attacked(rows[index]) for index in chosen]
        with progress(attack.name, len(hidden)) as step:
            answers = await judge.judge(hidden, step)
        before = [plain[index] for index in chosen]
        for name in judge.contestants:
            found[name].append(_result(attack, hidden, before, answers, name))
    kept = {name: _mean_kept(results) for name, results in found.items()}
    goals = [reached(goal, {"kept": kept[CASCADE]}) for goal in read_goals("obfuscation")]
    return ObfuscationResult(found, kept, [each for each in goals if each is not None])


def _chosen(rows: Sequence[Row], attack: Attack) -> list[int]:
    """The places of the rows that an attack is tried on."""
    if not attack.dear:
        return list(range(len(rows)))
    unsafe = [index for index, row in enumerate(rows) if row.unsafe]
    harmless = [index for index, row in enumerate(rows) if not row.unsafe]
    return [*unsafe[:_DEAR_LIMIT], *harmless[:_DEAR_LIMIT]]


def _result(
    attack: Attack,
    rows: Sequence[Row],
    plain: Sequence[Judged],
    hidden: Sequence[Judged],
    name: str,
) -> AttackResult:
    labels = truth(rows)
    before = metrics.decided(labels, caught([each.by[name] for each in plain]))
    after = metrics.decided(labels, caught([each.by[name] for each in hidden]))
    scores = np.asarray([each.by[name].score for each in hidden], np.float64)
    return AttackResult(
        attack=attack.name,
        family=attack.family,
        unsafe=int(labels.sum()),
        harmless=int((labels == 0).sum()),
        clean_recall=before["recall"],
        recall=after["recall"],
        kept=_ratio(after["recall"], before["recall"]),
        clean_fpr=before["fpr"],
        fpr=after["fpr"],
        auroc=metrics.ranking(labels, scores)["auroc"],
    )


def _ratio(part: float | None, whole: float | None) -> float | None:
    return round(part / whole, 4) if part is not None and whole else None


def _mean_kept(results: Sequence[AttackResult]) -> float | None:
    # What one attack wins must not pay for what another one loses.
    known = [min(each.kept, 1.0) for each in results if each.kept is not None]
    return round(float(np.mean(known)), 4) if known else None
