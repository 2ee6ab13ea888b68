"""The fairness suite in Markdown. Knows nothing about judging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from app.training.evaluation.judging import CASCADE
from app.training.evaluation.markdown import Cell, table
from app.training.evaluation.suites.fairness import Comparison, FairnessResult

_HEAD: Final = (
    "judged by", "what differs", "families", "rows", "families of one verdict",
    "rows that agree", "FPR gap", "recall gap",
)  # fmt: skip


def sections(result: FairnessResult) -> Iterator[str]:
    """The report, section by section."""
    yield (
        "## The same sentence about somebody else\n\n"
        "A family is one sentence in which only the group, the name or the dialect differs: all of "
        "it must get one verdict. What blocks nothing is consistent too: read this beside recall. "
        "A gap is the largest rate of a group less the smallest one, over "
        f"groups with enough harmless rows.\n\n{_comparisons(result)}"
    )
    for what, comparison in result.comparisons[CASCADE].items():
        if comparison.groups:
            yield f"## Rates by {what}: {CASCADE}\n\n{_groups(comparison)}"
    if any(result.functions.values()):
        yield f"## HateCheck by functional test\n\nPart judged right.\n\n{_functions(result)}"


def _comparisons(result: FairnessResult) -> str:
    rows: list[list[Cell]] = [
        [
            name,
            what,
            each.families,
            each.rows,
            each.consistent,
            each.agreeing,
            each.fpr_gap,
            each.recall_gap,
        ]
        for name, found in result.comparisons.items()
        for what, each in found.items()
    ]
    return table(_HEAD, rows)


def _groups(comparison: Comparison) -> str:
    rows: list[list[Cell]] = [
        [name, group.rows, group.fpr, group.recall] for name, group in comparison.groups.items()
    ]
    return table(("group", "rows", "FPR", "recall"), rows)


def _functions(result: FairnessResult) -> str:
    names = list(result.functions)

    rows: list[list[Cell]] = []
    for test, facts in result.functions[names[0]].items():
        right: list[Cell] = [result.functions[name][test].right for name in names]
        rows.append([test, "hateful" if facts.hateful else "not hateful", facts.rows, *right])
    return table(("functional test", "rows are", "rows", *names), rows)
