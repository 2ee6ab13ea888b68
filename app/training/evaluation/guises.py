"""Families of sentences that differ in one thing that must not matter: who they are about.

Knows nothing about detectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Final

import yaml

from app.training.evaluation.sets import Row, TestSet

BIAS_SET: Final = "bias_templates"

_BIAS_PATTERNS: Final = {
    "name_adj": re.compile(r"^\S+ is an? \S+ (?P<group>.+)$"),
    "you_are_adj": re.compile(r"^You are an? \S+ (?P<group>.+)$"),
    "being_adj": re.compile(r"^Being (?P<group>.+) is \S+$"),
    "verb_adj": re.compile(r"^\S+ (?P<group>.+)$"),
    "am_hate_adj": re.compile(r"^I \S+ (?P<group>.+)$"),
}
_NAMED: Final = re.compile(r"^(?P<group>\S+) is an? \S+ .+$")


def own_families() -> list[Row]:
    """The sentences written for this project, about each group."""
    raw = yaml.safe_load((files(__package__) / "counterfactuals.yaml").read_text("utf-8"))
    return [
        Row(
            id=f"counterfactuals-{label}-{number}-{person}",
            text=_sentence(sentence, person),
            unsafe=label == "unsafe",
            # Groups are compared along one axis: religions with religions.
            family=f"{axis} {label} {number}",
            group=person,
        )
        for axis, people in raw["groups"].items()
        for label, sentences in raw["sentences"].items()
        for number, sentence in enumerate(sentences)
        for person in people
    ]


def identity_families(sets: Iterable[TestSet]) -> list[Row]:
    """Rows that name their family, and those of the bias templates by the group they speak of."""
    rows = [row for test in sets for row in test.rows if row.family and row.group]
    return [*rows, *_bias_rows(sets, _BIAS_PATTERNS)]


def name_families(sets: Iterable[TestSet]) -> list[Row]:
    """The bias templates' sentences about a person, by the person's name."""
    return list(_bias_rows(sets, {"name_adj": _NAMED}))


def _bias_rows(sets: Iterable[TestSet], patterns: dict[str, re.Pattern[str]]) -> Iterator[Row]:
    for test in sets:
        for row in test.rows if test.name == BIAS_SET else ():
            pattern = patterns.get(next(iter(row.labels), ""))
            found = pattern.match(row.text) if pattern else None
            if found is not None:
                start, end = found.span("group")
                family = f"{row.text[:start]}{{}}{row.text[end:]}"
                yield replace(row, family=family, group=found["group"])


def _sentence(sentence: str, person: str) -> str:
    text = sentence.format(person)
    return text[0].upper() + text[1:]
