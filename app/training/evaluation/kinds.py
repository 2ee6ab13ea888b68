"""Recall by our own categories, over all sets whose labels have a counterpart among them.

Knows nothing about how the rows were judged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import yaml

from app.domain.categories import Category
from app.training.evaluation.figures import FEWEST
from app.training.evaluation.judging import Judgement
from app.training.evaluation.sets import TestSet

LabelMap = Mapping[str, Mapping[str, Category]]


@dataclass(frozen=True, slots=True)
class Kind:
    """Unsafe rows of one category: how many were caught at all, and caught under this name."""

    rows: int
    recall: float
    named: float


def read_labels() -> LabelMap:
    """Set name -> label of its source -> our category."""
    raw = yaml.safe_load((files(__package__) / "labels.yaml").read_text("utf-8"))
    return {
        name: {label: Category(category) for label, category in labels.items()}
        for name, labels in raw.items()
    }


def kinds(
    sets: Iterable[tuple[TestSet, Sequence[Judgement]]], known: LabelMap
) -> dict[Category, Kind]:
    """Each category with enough unsafe rows, in the order of the taxonomy.

    Labels that are a category's own name count too: those of a user's file.
    """
    own = {category.value: category for category in Category}
    rows: Counter[Category] = Counter()
    hits: defaultdict[str, Counter[Category]] = defaultdict(Counter)
    for test, judged in sets:
        names = {**own, **known.get(test.name, {})}
        for row, judgement in zip(test.rows, judged, strict=True):
            if not row.unsafe:
                continue
            for category in {names[label] for label in row.labels if label in names}:
                rows[category] += 1
                hits["caught"][category] += judgement.caught
                hits["named"][category] += category in judgement.categories
    return {
        category: Kind(
            rows[category],
            round(hits["caught"][category] / rows[category], 4),
            round(hits["named"][category] / rows[category], 4),
        )
        for category in Category
        if rows[category] >= FEWEST
    }
