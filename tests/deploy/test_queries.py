from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry

from app.labels import LABEL_VALUES
from app.main import _instrument
from app.metrics import Metrics, catalogue
from tests.deploy.promql import dashboard_expressions, grouped, matched_values, selectors

TARGET = {"job", "instance"}  # Prometheus adds them to everything that it scrapes
PARTS = {
    "counter": {"": set()},
    "gauge": {"": set()},
    "histogram": {"_bucket": {"le"}, "_sum": set(), "_count": set()},
}


def exposed_by_http() -> dict[str, set[str]]:
    """What the HTTP instrumentation really exposes."""
    app, registry = FastAPI(), CollectorRegistry()
    _instrument(app, registry)
    app.get("/moderate")(lambda: "judged")
    with TestClient(app) as client:
        client.get("/moderate")
    return {
        sample.name: set(sample.labels)
        for family in registry.collect()
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def known(rules) -> dict[str, set[str]]:
    """Every metric that can be asked for, with its labels."""
    names = exposed_by_http()
    for entry in catalogue():
        for suffix, more in PARTS[entry.type].items():
            names[entry.name + suffix] = {*entry.labels, *more}
    for family in Metrics().registry.collect():
        names.update({one.name: set() for one in family.samples if one.name.startswith("process_")})
    for rule in rules:
        if "record" in rule:  # `job_stage:what:how` keeps the labels that it is named after
            names[rule["record"]] = set(rule["record"].split(":")[0].split("_"))
    names["up"] = set()
    names["ALERTS"] = {"alertname", "alertstate"}
    return {name: labels | TARGET for name, labels in names.items()}


@pytest.fixture(scope="module")
def expressions(rules, dashboards) -> list[str]:
    found = [rule["expr"] for rule in rules]
    for dashboard in dashboards.values():
        found += dashboard_expressions(dashboard)
    return found


def problems(expression: str, known: dict[str, set[str]]) -> list[str]:
    found = []
    available = set(TARGET)
    for metric, labels in selectors(expression):
        if metric not in known:
            found.append(f"no metric {metric}")
            continue
        available |= known[metric]
        found += [f"{metric} has no label {label}" for label in labels - known[metric]]
    found += [f"nothing has the label {label}" for label in grouped(expression) - available]
    found += [
        f"{label} is never {value}"
        for label, value in matched_values(expression)
        if label in LABEL_VALUES and value not in LABEL_VALUES[label]
    ]
    return found


def test_every_query_asks_for_what_exists(expressions, known) -> None:
    assert len(expressions) > 80
    assert {e: found for e in expressions if (found := problems(e, known))} == {}


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("rate(guardrail_blocked_total[5m])", "no metric guardrail_blocked_total"),
        ("guardrail_batch_size", "no metric guardrail_batch_size"),
        ('guardrail_ready{stage="input"}', "guardrail_ready has no label stage"),
        ("sum by (stage) (guardrail_ready)", "nothing has the label stage"),
        ('guardrail_requests_total{verdict="deny"}', "verdict is never deny"),
        ("job:nothing:rate5m > 1", "no metric job:nothing:rate5m"),
    ],
)
def test_a_query_for_something_else_is_noticed(expression, problem, known) -> None:
    assert problems(expression, known) == [problem]


def test_a_bucket_that_is_asked_for_is_one_of_the_histogram(expressions) -> None:
    metrics = Metrics()
    metrics.score.labels(detector="pii", category="hate").observe(0.5)
    bounds = {
        sample.labels["le"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "guardrail_score_bucket"
    }
    asked = {found for one in expressions for found in re.findall(r'\ble="([^"]+)"', one)}
    assert asked
    assert asked <= bounds


def test_every_metric_is_shown_or_watched(expressions) -> None:
    asked = {metric for expression in expressions for metric, _ in selectors(expression)}
    unused = {
        entry.name
        for entry in catalogue()
        if not any(entry.name + suffix in asked for suffix in PARTS[entry.type])
    }
    assert unused == set()
