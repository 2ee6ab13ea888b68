"""Reads the metrics and labels that a PromQL expression names.

Knows nothing about which of them exist. Not a parser: enough for the expressions of this project.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_WORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "offset", "bool", "inf", "nan"}


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Each metric with the labels that it is selected by."""
    without_text = _STRING.sub('""', expression)
    bare = re.sub(r"\[[^\]]*\]|\$\w+", "", _GROUPING.sub(" ", without_text))
    found = []
    for match in _SELECTOR.finditer(bare):
        name, matchers = match.group(1), match.group(2) or ""
        called = bare[match.end() :].lstrip().startswith("(") and not matchers
        duration = match.start() > 0 and bare[match.start() - 1].isdigit()
        if not called and not duration and name not in _WORDS:
            found.append((name, set(re.findall(r"(\w+)\s*(?:!=|=~|!~|=)", matchers))))
    return found


def grouped(expression: str) -> set[str]:
    """The labels that results are grouped or joined by."""
    lists = _GROUPING.findall(_STRING.sub('""', expression))
    return {label.strip() for names in lists for label in names.split(",")} - {""}


def matched_values(expression: str) -> Iterator[tuple[str, str]]:
    """Each label that must or must not equal a literal, with the literal."""
    for match in re.finditer(r'(\w+)\s*!?=\s*"([^"$]*)"', expression):
        yield match.group(1), match.group(2)


def dashboard_expressions(dashboard: dict[str, Any]) -> list[str]:
    """The queries of the panels, the annotations and the variables."""
    panels = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    annotations = [one["expr"] for one in dashboard["annotations"]["list"]]
    variables = [
        re.fullmatch(r"label_values\((\w+), (\w+)\)", one["query"]["query"])
        for one in dashboard["templating"]["list"]
    ]
    return panels + annotations + [f"sum by ({one[2]}) ({one[1]})" for one in variables if one]
