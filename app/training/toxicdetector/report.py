"""The figures of the trainer as Markdown tables, the paper's beside them.

Knows nothing about how they were measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

Figures = Mapping[str, float | None]

PAPER: Final[Sequence[tuple[str, Figures]]] = (
    ("ToxicDetector (SPC)", {"f1": 0.9635, "fpr": 0.019, "accuracy": 0.9758, "auroc": 0.99}),
    ("PlatonicDetector (SPC)", {"f1": 0.8986, "fpr": 0.095, "accuracy": 0.9241}),
    ("OpenAI Moderation (SPC)", {"f1": 0.5884, "fpr": 0.109, "accuracy": 0.7819}),
)
"""As its authors give them: other language models, three benign prompts for each toxic one."""

_OWN: Final = ("f1", "fpr", "accuracy", "auroc")
_OTHERS: Final = ("auroc", "auprc", "recall", "fpr")


def tables(facts: Mapping[str, Any]) -> str:
    """Every part that was measured, one table each."""
    parts = []
    if "protocol" in facts:
        own = [
            (split, method, found)
            for split, methods in facts["protocol"]["own"].items()
            for method, found in methods.items()
        ]
        published = [("published", method, found) for method, found in PAPER]
        parts.append("## The paper's data\n\n" + _table(("split", *_OWN), [*own, *published]))
        title = "## Other data, trained on the paper's data (random split, threshold 0.5)\n\n"
        parts.append(title + _by_set(facts["protocol"]["others"]))
    if "model" in facts:
        title = "## Other data, the shipped model (balanced threshold)\n\n"
        parts.append(title + _by_set(facts["model"]["sets"]))
    if "cost" in facts:
        names = ("chat", "detector", "both", "added", "mlp")
        rows = [
            f"| {size} | " + " | ".join(str(found[name]) for name in names) + " |"
            for size, found in facts["cost"].items()
        ]
        head = "| text | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|"
        parts.append("## Milliseconds\n\n" + "\n".join([head, *rows]))
    return "\n\n".join(parts) + "\n"


def _by_set(sets: Mapping[str, Mapping[str, Figures]]) -> str:
    rows = [
        (name, method, found) for name, methods in sets.items() for method, found in methods.items()
    ]
    return _table(("set", *_OTHERS), rows)


def _table(columns: Sequence[str], rows: Iterable[tuple[str, str, Figures]]) -> str:
    first, *names = columns
    lines = [f"| {first} | method | " + " | ".join(name.upper() for name in names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for test, method, found in rows:
        cells = (_cell(found.get(name)) for name in names)
        lines.append(f"| {test} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
