"""Probes, metrics, information, reload."""

from __future__ import annotations

import pytest

from app.config import AuthSettings
from tests.api.world import api_key, bearer, policy_yaml


def test_a_ready_service(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/startupz").json() == {"status": "started"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_before_the_first_round_it_is_alive_but_not_started(world):
    world.asked = False
    with world.client() as client:
        assert client.get("/healthz").status_code == 200
        reply = client.get("/startupz")
    assert reply.status_code == 503
    assert reply.json() == {"status": "starting"}


def test_a_dead_worker_makes_it_unready(world):
    with world.client() as client:
        world.worker_alive = False
        reply = client.get("/readyz")
        alive, started = client.get("/healthz"), client.get("/startupz")
        world.worker_alive = True
        again = client.get("/readyz")
    assert reply.status_code == 503
    assert reply.json() == {"status": "not_ready", "problems": {"batcher": "worker is dead"}}
    assert (alive.status_code, started.status_code, again.status_code) == (200, 200, 200)


def test_metrics_are_those_of_the_registry(client):
    client.post("/moderate", json={"input": "forbidden"})
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    assert 'guardrail_blocks_total{category="blocklist",policy="default",stage="input"} 1.0' in (
        reply.text
    )


def test_metrics_come_as_openmetrics_on_request(client):
    accept = "application/openmetrics-text; version=1.0.0"
    reply = client.get("/metrics", headers={"accept": accept})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")


@pytest.mark.parametrize("accept", ["text/plain; version=x", "application/openmetrics-text;=", ""])
def test_odd_wishes_for_metrics_get_the_text_format(client, accept):
    reply = client.get("/metrics", headers={"accept": accept})
    assert reply.status_code == 200


def test_info_tells_what_is_running(client):
    body = client.get("/info").json()
    assert body["version"] == "1.2.3"
    assert body["default_policy"] == "default"
    assert {policy["name"] for policy in body["policies"]} == {
        "default", "strict", "monitor", "open", "hasty", "redacting",
    }  # fmt: skip
    assert {policy["name"]: policy["enforced"] for policy in body["policies"]}["monitor"] is False
    assert body["models"] == [
        {
            "name": "encoder",
            "revision": "r1",
            "digest": "d1",
            "licence": "Apache-2.0",
            "device": "cpu",
        }
    ]
    assert body["detectors"] == [
        {"name": "keywords", "digest": "phrases-1"},
        {"name": "pii", "digest": "phrases-1"},
    ]
    assert set(body["limits"]) == {"max_body_bytes", "max_inputs", "deadline_ms"}


def test_info_shows_the_callers_policies_only(world):
    world.auth = AuthSettings(
        keys=(api_key("narrow", policies=("strict",), default_policy="strict"),)
    )
    with world.client() as client:
        body = client.get("/info", headers=bearer("narrow")).json()
    assert [policy["name"] for policy in body["policies"]] == ["strict"]
    assert body["default_policy"] == "strict"


def test_reload_puts_new_policies_into_force(world):
    with world.client("127.0.0.1") as client:
        before = client.post("/moderate", json={"input": "forbidden"}).json()
        (world.folder / "default.yaml").write_text(policy_yaml(action="flag"))
        report = client.post("/admin/policies/reload")
        after = client.post("/moderate", json={"input": "forbidden"}).json()
    assert report.json()["ok"] is True
    assert "default" in report.json()["policies"]
    assert (before["verdict"], after["verdict"]) == ("block", "flag")
    assert before["policy"]["digest"] != after["policy"]["digest"]


def test_a_failed_reload_keeps_the_last_good_policies(world):
    with world.client("127.0.0.1") as client:
        (world.folder / "default.yaml").write_text("input: nonsense")
        report = client.post("/admin/policies/reload")
        after = client.post("/moderate", json={"input": "forbidden"}).json()
    assert report.status_code == 409
    assert report.json()["ok"] is False
    assert report.json()["error"]
    assert after["verdict"] == "block"
