"""Which data sets train the prompt detector and what their labels mean: `sources.yaml` as types.

Knows nothing about files of data or about models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from app.domain.categories import Category

Sides = Literal["input", "output", "both"]


@dataclass(frozen=True, slots=True)
class Source:
    """One data set as training uses it; the fields are explained at the top of the table.

    A request for harm is unsafe as input, an answer that gives it is unsafe as output, abuse is
    unsafe on both sides. A safe row is safe on both, unless it answers something: then only its
    output side is known.
    """

    name: str
    unsafe: Sides = "input"
    safe: Sides = "both"
    limit: int = 10_000
    categories: tuple[Category, ...] = ()
    labels: Mapping[str, tuple[Category, ...]] = field(default_factory=dict)
    only: frozenset[str] = frozenset()
    safe_only: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    per_label: Mapping[str, int] = field(default_factory=dict)
    cap: int | None = None
    axes: tuple[Category, ...] = ()
    weight: float = 1.0
    smoothing: float = 0.02

    def admits(self, labels: frozenset[str], *, unsafe: bool) -> bool:
        """Whether a row with these labels of the source is used at all."""
        if labels & self.without:
            return False
        wanted = self.only if unsafe else self.safe_only
        return not wanted or bool(labels & wanted)

    def our_categories(self, labels: frozenset[str]) -> tuple[Category, ...]:
        """The categories of an unsafe row; empty means that the source does not say."""
        mapped = {category for label in labels for category in self.labels.get(label, ())}
        return tuple(sorted({*mapped, *self.categories}))


def load_sources() -> tuple[Source, ...]:
    """The table, in its order."""
    path = Path(__file__).with_name("sources.yaml")
    table: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(_source(name, entry) for name, entry in table.items())


def _source(name: str, entry: dict[str, Any]) -> Source:
    rest: dict[str, Any] = {
        key: frozenset(entry.pop(key, ())) for key in ("only", "safe_only", "without")
    }
    labels = {
        label: tuple(map(Category, mapped)) for label, mapped in entry.pop("labels", {}).items()
    }
    categories = tuple(map(Category, entry.pop("categories", ())))
    axes = tuple(map(Category, entry.pop("axes", ())))
    return Source(name, categories=categories, axes=axes, labels=labels, **rest, **entry)
