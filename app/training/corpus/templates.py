"""Samples written for the project: harmless texts with frightening words, and thin categories.

Knows nothing about the data sets. The words stand in `templates.yaml`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

import yaml

from app.domain.categories import Category
from app.training.corpus.datasets import Sample

SOURCE: Final = "templates"

# As input and as output; a request is no answer, so its output side has no label.
_LABELS: Final = {"safe": (0.0, 0.0), "requests": (1.0, math.nan), "abuse": (1.0, 1.0)}
_NOT_SLOTS: Final = {"patterns", "categories", "limit"}
_SLOT: Final = re.compile(r"\{(\w+)\}")
_CASUAL: Final = 0.2  # share of the texts typed as in a chat: lower case, no full stop


def template_samples() -> Iterator[Sample]:
    """All samples written for the project; the same ones in the same order each time."""
    path = Path(__file__).with_name("templates.yaml")
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))
    seen: set[str] = set()
    for kind, (on_input, on_output) in _LABELS.items():
        for group in groups[kind]:
            categories = tuple(Category(name) for name in group.get("categories", ()))
            for text in _texts(group):
                if text not in seen:
                    seen.add(text)
                    yield Sample(text, SOURCE, on_input, on_output, categories)


def _texts(group: Mapping[str, Any]) -> list[str]:
    """The product of patterns and slots, cut to the limit of the group."""
    slots = {name: _flat(values) for name, values in group.items() if name not in _NOT_SLOTS}
    texts = [text for pattern in _flat(group["patterns"]) for text in _filled(pattern, slots)]
    chance = random.Random(texts[0])  # noqa: S311 - reproducible, not a secret
    if len(texts) > group.get("limit", len(texts)):
        texts = chance.sample(texts, group["limit"])
    return [_casual(text) if chance.random() < _CASUAL else text for text in texts]


def _filled(pattern: str, slots: Mapping[str, list[str]]) -> Iterator[str]:
    names = sorted(set(_SLOT.findall(pattern)))
    for values in product(*(slots[name] for name in names)):
        text = pattern.format(**dict(zip(names, values, strict=True)))
        yield text[:1].upper() + text[1:] if pattern.startswith("{") else text


def _casual(text: str) -> str:
    return text.lower().removesuffix(".").removesuffix("?")


def _flat(values: list[Any]) -> list[str]:
    """A list of texts; YAML puts a shared list into another one as a list."""
    return [
        text
        for value in values
        for text in (_flat(value) if isinstance(value, list) else [str(value)])
    ]
