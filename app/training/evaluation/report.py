"""A report on disk: `results.json`, `report.md` and plots.

Knows nothing about what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from app.training.evaluation.machine import Machine

RESULTS: Final = "results.json"
REPORT: Final = "report.md"
_CASCADE: Final = "`cascade`: all detectors of the policy together, as the service judges"


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked, of whom, where. The same run on the same models gives the same results."""

    suite: str
    policy: str
    detectors: tuple[str, ...]
    revisions: Mapping[str, str]
    data: str
    limit: int
    seed: int
    machine: Machine


def markdown(
    run: Run, sections: Sequence[str], plots: Sequence[str] = (), note: str = _CASCADE
) -> str:
    """The whole report as text; `note` is the last line of its head."""
    models = ", ".join(f"{name} {revision}" for name, revision in sorted(run.revisions.items()))
    head = (
        f"# Evaluation: {run.suite}\n\n"
        f"Made by `sluiceway eval --suite {run.suite}`; do not edit.\n\n"
        f"* {run.machine.describe()}\n"
        f"* models: {models or 'none'}\n"
        f"* policy `{run.policy}`, its thresholds as shipped; data `{run.data}`, "
        f"{f'at most {run.limit} rows of a set' if run.limit else 'all rows'}, seed {run.seed}\n"
        f"* {note}"
    )
    pictures = [f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in plots]
    return "\n\n".join((head, *sections, *pictures)) + "\n"


def write(out: Path, run: Run, results: Any, text: str) -> None:
    """Write both files; `results` is a dataclass."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"run": asdict(run), "results": asdict(results)}
    (out / RESULTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / REPORT).write_text(text, encoding="utf-8")
