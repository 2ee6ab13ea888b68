"""A real Prometheus, with the configuration that is shipped, scrapes a running guard."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from app.config import shipped
from tests.e2e.guards import PHRASE, Guard

pytestmark = [pytest.mark.e2e, pytest.mark.prometheus]

START_S = 60


def configure(folder: Path, target: str, own: str) -> Path:
    """The shipped configuration with the addresses of this test, and less patience."""
    for path in shipped("deploy/prometheus").glob("*.yml"):
        shutil.copy(path, folder)
    path = folder / "prometheus.yml"
    config = yaml.safe_load(path.read_text("utf-8"))
    config["global"].update(scrape_interval="1s", scrape_timeout="1s", evaluation_interval="1s")
    guard, itself = config["scrape_configs"]
    guard["static_configs"] = [{"targets": [target]}]
    itself["static_configs"] = [{"targets": [own]}]
    path.write_text(yaml.safe_dump(config))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def prometheus(guard: Guard, tmp_path: Path) -> Iterator[httpx2.Client]:
    program = shutil.which("prometheus")
    assert program, "apt-get install prometheus, or deselect with -m 'not prometheus'"
    own = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={configure(tmp_path, guard.url.removeprefix('http://'), own)}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={own}",
    ]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with httpx2.Client(base_url=f"http://{own}/api/v1") as client:
                yield client
        finally:
            running.terminate()
            running.wait(30)


def ask(prometheus: httpx2.Client, path: str, **params: str) -> Any:
    """The data of one answer; None while there is none."""
    try:
        reply = prometheus.get(path, params=params)
    except httpx2.TransportError:
        return None
    return reply.json()["data"] if reply.status_code == httpx2.codes.OK else None


def value(prometheus: httpx2.Client, query: str) -> float | None:
    data = ask(prometheus, "/query", query=query)
    return float(data["result"][0]["value"][1]) if data and data["result"] else None


def wait_for(prometheus: httpx2.Client, query: str) -> float:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if found := value(prometheus, query):
            return found
        time.sleep(0.05)
    raise AssertionError(f"no answer to {query}")


def test_prometheus_scrapes_the_guard_and_answers(
    guard: Guard, client: httpx2.Client, prometheus: httpx2.Client
) -> None:
    client.post("/moderate", json={"input": PHRASE})

    assert wait_for(prometheus, 'up{job="guard"} == 1') == 1
    counted = guard.counted(
        "guardrail_requests_total",
        endpoint="moderate",
        stage="input",
        policy="default",
        verdict="block",
    )
    labels = 'endpoint="moderate",stage="input",policy="default",verdict="block"'
    assert wait_for(prometheus, f"guardrail_requests_total{{{labels}}} > 0") == counted
    assert wait_for(prometheus, "guardrail_ready") == 1


def test_every_rule_is_evaluated_without_an_error(prometheus: httpx2.Client) -> None:
    wait_for(prometheus, 'up{job="guard"} == 1')
    wait_for(prometheus, "min(prometheus_rule_group_last_evaluation_timestamp_seconds) > 0")
    groups = ask(prometheus, "/rules")["groups"]

    rules = [rule for group in groups for rule in group["rules"]]
    shipped_rules = yaml.safe_load(shipped("deploy/prometheus").joinpath("rules.yml").read_text())
    assert len(rules) == sum(len(group["rules"]) for group in shipped_rules["groups"])
    assert {rule["health"] for rule in rules} == {"ok"}
    assert not any(rule.get("lastError") for rule in rules)
    assert not [rule["name"] for rule in rules if rule.get("state") == "firing"]
