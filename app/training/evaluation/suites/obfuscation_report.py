"""The obfuscation suite in Markdown. Knows nothing about judging."""

from __future__ import annotations

from collections.abc import Iterator

from app.training.evaluation.markdown import Cell, table
from app.training.evaluation.suites.obfuscation import ObfuscationResult
from app.training.evaluation.suites.public_report import goals

_HEAD = (
    "attack", "family", "unsafe", "recall in plain words", "recall", "kept",
    "harmless", "FPR in plain words", "FPR", "AUROC",
)  # fmt: skip


def sections(result: ObfuscationResult) -> Iterator[str]:
    """The report, section by section."""
    if result.goals:
        yield f"## Goals\n\n{goals(result.goals)}"
    yield (
        "## How to read it\n\n"
        "Kept: recall under the attack over recall in plain words, on the same rows. FPR: the part "
        "of harmless prompts that is blocked under the same attack; an attack whose FPR rises as "
        "its recall does is not detected, its wrapper is. AUROC tells unsafe from harmless prompts "
        "under the attack."
    )
    for name, attacks in result.attacks.items():
        rows: list[list[Cell]] = [
            [
                each.attack,
                each.family,
                each.unsafe,
                each.clean_recall,
                each.recall,
                each.kept,
                each.harmless,
                each.clean_fpr,
                each.fpr,
                each.auroc,
            ]
            for each in attacks
        ]
        mean = result.kept[name]
        kept = "not known" if mean is None else f"{mean:.3f}"
        yield f"## {name}\n\nKept, mean over attacks: **{kept}**.\n\n{table(_HEAD, rows)}"
