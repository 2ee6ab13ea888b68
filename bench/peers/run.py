"""Peers and our own guard on the same rows: writes one table in Markdown.

    python -m bench.peers.run --data DIR [--limit 100] [--sets a,b] [--peers a,b] [--out FILE]

Knows nothing about how a peer scores.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from app import logs
from app.config import Settings
from app.training.evaluation.figures import Figures, figures
from app.training.evaluation.judging import CASCADE, Judgement, open_judge
from app.training.evaluation.machine import this_machine
from app.training.evaluation.markdown import Cell, table
from app.training.evaluation.progress import progress
from app.training.evaluation.sets import TestSet, read_sets
from bench.peers.environment import PeerFailed, ask

PEERS: Final[Mapping[str, str]] = {
    "alt-profanity-check": "profanity",
    "best-profanity": "profanity",
    "prompt-guardrail": "injection",
    "prompt-injection-defense": "injection",
    "metatronnanoguard": "injection",
}
"""Each peer, and what it says that it finds."""

_UNASKED: Final = frozenset({"prompt-injection-defense"})
"""Left out unless named: its rules take seconds for a long text."""
_FIGURES: Final = {"AUROC": "auroc", "AUPRC": "auprc", "F1": "f1", "recall": "recall", "FPR": "fpr"}


def main(argv: Sequence[str] | None = None) -> int:
    """Score the peers that are asked for; 1 if one of them failed."""
    asked = _parser().parse_args(argv)
    logs.configure("warning")
    wanted = set(filter(None, asked.sets.split(",")))
    sets = [
        test
        for test in read_sets(asked.data, limit=asked.limit)
        if not wanted or test.name in wanted
    ]
    found: dict[str, list[Figures]] = {}
    times: dict[str, float] = {}
    found[CASCADE], times[CASCADE] = asyncio.run(_ours(sets))
    failed = False
    for name in asked.peers.split(","):
        try:
            with progress(name, len(sets)) as step:
                found[name], times[name] = _theirs(name, sets)
                step()
        except PeerFailed as error:
            print(error, file=sys.stderr)
            failed = True
    text = report(sets, found, times, asked.limit)
    if asked.out is None:
        print(text)
    else:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text, "utf-8")
    return int(failed)


def report(
    sets: Sequence[TestSet],
    found: Mapping[str, Sequence[Figures]],
    times: Mapping[str, float],
    limit: int,
) -> str:
    """The whole report: the peers, then one table for each figure."""
    rows: list[list[Cell]] = [[name, PEERS.get(name, "all of it"), times[name]] for name in found]
    head = (
        "# Peers\n\nMade by `python -m bench.peers.run`; do not edit.\n\n"
        f"{this_machine().describe()}. The same rows for all, at most {limit or 'all'} of a set. "
        "A peer decides as it does by default, and is measured on what it was not made for, too. "
        "Peers read a response without what it answers, as none of them takes it; our own guard "
        "gets it, as in service."
    )
    parts = [
        head,
        table(("guard", "finds", "median ms a text"), rows),
    ]
    for title, figure in _FIGURES.items():
        lines: list[list[Cell]] = []
        for index, test in enumerate(sets):
            values: list[Cell] = [getattr(each[index], figure) for each in found.values()]
            if any(value is not None for value in values):
                lines.append([test.name, len(test.rows), *values])
        if lines:
            parts += [f"## {title}", table(("set", "rows", *found), lines)]
    return "\n\n".join(parts) + "\n"


async def _ours(sets: Sequence[TestSet]) -> tuple[list[Figures], float]:
    measured, times = [], []
    async with open_judge(Settings()) as judge:
        for test in sets:
            with progress(test.name, len(test.rows)) as step:
                judged = await judge.judge(test.rows, step)
            measured.append(figures(test.rows, [each.by[CASCADE] for each in judged]))
        # Alone, as the peers are asked: under load a text would wait for others.
        for row in sets[0].rows[:50]:
            judged_alone = await judge.judge_one(row)
            times.append(max(judged_alone.milliseconds.values()))
    return measured, median(times)


def _theirs(name: str, sets: Sequence[TestSet]) -> tuple[list[Figures], float]:
    answers = ask(name, (row.text for test in sets for row in test.rows))
    measured = []
    start = 0
    for test in sets:
        mine = answers[start : start + len(test.rows)]
        start += len(test.rows)
        measured.append(figures(test.rows, [Judgement(each.score, each.caught) for each in mine]))
    return measured, median(each.ms for each in answers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.peers.run", description="Score other guards.")
    parser.add_argument("--data", type=Path, required=True, help="folder with test/, or a file")
    parser.add_argument("--limit", type=int, default=100, help="rows of a set; 0 takes all")
    parser.add_argument("--sets", default="", help="names, with commas; all of them by default")
    parser.add_argument(
        "--peers",
        default=",".join(name for name in PEERS if name not in _UNASKED),
        help="names, with commas",
    )
    parser.add_argument("--out", type=Path, help="the table's file")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
