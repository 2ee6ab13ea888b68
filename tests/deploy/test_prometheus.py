from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.deploy.promql import dashboard_expressions


def alerts(rules):
    return [rule for rule in rules if "alert" in rule]


def headings(runbook: str) -> list[str]:
    return re.findall(r"^## (\w+)$", runbook, re.MULTILINE)


def test_every_alert_tells_what_it_is_and_what_to_do(rules) -> None:
    for rule in alerts(rules):
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


def test_every_alert_has_its_section_in_the_runbook_and_the_other_way_round(rules, root) -> None:
    sections = headings((root / "docs/runbook.md").read_text("utf-8"))
    assert sorted(sections) == sorted(rule["alert"] for rule in alerts(rules))
    for rule in alerts(rules):
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_links_inside_the_runbook_lead_somewhere(root) -> None:
    text = (root / "docs/runbook.md").read_text("utf-8")
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert links
    assert set(links) <= {heading.lower() for heading in headings(text)}


def test_the_runbook_names_settings_that_exist(root) -> None:
    from app.config import Settings

    names = re.findall(r"`SLUICEWAY_([A-Z_]+)(?:=\w+)?`", (root / "docs/runbook.md").read_text())
    assert names
    for name in names:
        group, field = name.lower().split("__")
        assert field in type(getattr(Settings(), group)).model_fields


def test_every_alert_is_tested_firing_and_silent(rules, root) -> None:
    document = yaml.safe_load((root / "deploy/prometheus/rules_test.yml").read_text("utf-8"))
    cases = [case for test in document["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in alerts(rules)}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_the_guard_is_scraped_under_the_name_that_rules_select(root) -> None:
    document = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in document["scrape_configs"]}
    assert jobs["guard"]["static_configs"] == [{"targets": ["guard:8000"]}]
    assert jobs["guard"]["metrics_path"] == "/metrics"
    assert document["rule_files"] == ["rules.yml"]


@pytest.mark.prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_prometheus_accepts(arguments, promtool, root) -> None:
    done = subprocess.run(
        [promtool, *arguments],
        cwd=root / "deploy/prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_prometheus_can_read_every_query_of_the_dashboards(
    promtool, dashboards, root, tmp_path
) -> None:
    found = [one for board in dashboards.values() for one in dashboard_expressions(board)]
    variables = {"$__rate_interval": "5m", "$__range": "1h"}
    queries = [
        {"record": "asked", "expr": re.sub(r"\$\w+", lambda m: variables.get(m[0], ".*"), query)}
        for query in found
    ]
    # One group for each: two rules of one name and one group would be a mistake.
    groups = [{"name": f"query-{n}", "rules": [query]} for n, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=none", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(found)} rules found" in done.stdout
