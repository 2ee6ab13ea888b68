"""Samples written for the project: harmless texts with frightening words, and thin categories.

Knows nothing about the data sets. The words stand in `templates.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

import yaml

from app.domain.categories import Category
from app.training.corpus.datasets import Sample

SOURCE: Final = "templates"

# As input and as output; a request is no answer, so its output side has no label.
_LABELS: Final = {"safe": (0.0, 0.0), "requests": (1.0, math.nan), "abuse": (1.0, 1.0)}


def template_samples() -> Iterator[Sample]:
    """All samples written for the project."""
    path = Path(__file__).with_name("templates.yaml")
    groups: dict[str, list[dict[str, Any]]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for kind, (on_input, on_output) in _LABELS.items():
        for group in groups[kind]:
            categories = tuple(Category(name) for name in group.get("categories", ()))
            for pattern, what in product(group["patterns"], group["what"]):
                text = pattern.format(what=what)
                yield Sample(text, SOURCE, on_input, on_output, categories)
