"""Starting, stopping, readiness, reloading under load, and who may do what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app import main
from app.config import AuthSettings, ModelSettings
from app.domain.errors import ModelMissing
from app.moderation.readiness import ReadinessProbe
from tests.e2e.guards import (
    MODEL,
    MODEL_FOLDER,
    PHRASE,
    Guard,
    api_key,
    guard_settings,
    running,
    write_policies,
)
from tests.fake_upstream import FakeUpstream
from tests.fakes import PhraseDetector

pytestmark = pytest.mark.e2e

ONE_SIDED = """
description: {name}
input: {{detectors: [keywords], action: {input}}}
output: {{detectors: [keywords], action: {output}}}
"""
VERSIONS = {
    "blocks what comes in": ONE_SIDED.format(
        name="blocks what comes in", input="block", output="allow"
    ),
    "blocks what goes out": ONE_SIDED.format(
        name="blocks what goes out", input="allow", output="block"
    ),
}


@pytest.fixture
def own_policies(tmp_path: Path) -> Path:
    return write_policies(tmp_path / "policies")


def noted(events: list[str], name: str, opened: Any) -> Any:
    @asynccontextmanager
    async def noting(*args: Any) -> AsyncIterator[Any]:
        entered: AbstractAsyncContextManager[Any] = opened(*args)
        async with entered as value:
            events.append(f"{name} is there")
            yield value
            events.append(f"{name} goes")

    return noting


async def test_parts_start_in_order_and_stop_in_reverse(
    own_policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("open_guard", "open_upstream"):
        monkeypatch.setattr(main, name, noted(events, name, getattr(main, name)))
    ask = ReadinessProbe.ask

    async def asked(probe: ReadinessProbe) -> None:
        events.append("canaries are asked")
        await ask(probe)

    monkeypatch.setattr(ReadinessProbe, "ask", asked)
    app = main.create_app(guard_settings(own_policies))

    async with app.router.lifespan_context(app):
        events.append("requests are served")
        watching = [t for t in asyncio.all_tasks() if t.get_name() == "canaries"]
        assert len(watching) == 1

    assert events == [
        "open_upstream is there",
        "open_guard is there",
        "canaries are asked",
        "requests are served",
        "open_guard goes",
        "open_upstream goes",
    ]
    assert watching[0].cancelled()


async def test_a_guard_without_its_model_does_not_start(own_policies: Path, tmp_path: Path) -> None:
    settings = guard_settings(own_policies, models=ModelSettings(folder=tmp_path))
    app = main.create_app(settings)

    with pytest.raises(ModelMissing, match=f"sluiceway train {MODEL_FOLDER}"):
        async with app.router.lifespan_context(app):
            pass


def test_a_guard_that_works_is_started_and_ready(client: httpx2.Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/startupz").json() == {"status": "started"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_a_wrong_canary_makes_it_unready_until_the_answer_is_right_again(
    guard: Guard, client: httpx2.Client
) -> None:
    detectors: Any = guard.parts.engine.detectors
    working = detectors[MODEL]
    detectors[MODEL] = PhraseDetector((), MODEL)
    guard.call(guard.parts.readiness.ask())
    wrong = client.get("/readyz")
    detectors[MODEL] = working
    guard.call(guard.parts.readiness.ask())

    assert wrong.status_code == 503
    assert wrong.json()["problems"] == {MODEL: "wrong answer"}
    assert client.get("/healthz").status_code == 200
    assert client.get("/startupz").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert guard.counted("guardrail_canary_ok", detector=MODEL) == 1


def test_a_dead_worker_makes_it_unready_and_fails_closed(own_policies: Path) -> None:
    with (
        running(guard_settings(own_policies)) as guard,
        httpx2.Client(base_url=guard.url, timeout=30) as client,
    ):
        assert client.get("/readyz").status_code == 200
        detector: Any = guard.parts.engine.detectors[MODEL]
        guard.call(detector._batcher.close())

        unready = client.get("/readyz")
        # Not one of the golden texts: their scans are in the cache.
        judged = client.post("/moderate", json={"input": "Rain is on its way"}).json()

        assert unready.status_code == 503
        assert unready.json()["problems"] == {MODEL: "worker is dead"}
        assert guard.counted("guardrail_ready") == 0
        assert judged["verdict"] == "block"
        assert judged["results"][0]["degraded"] == "error"
        assert client.get("/healthz").status_code == 200


def test_reload_under_load_shows_no_half_of_a_policy(own_policies: Path) -> None:
    expected = {"blocks what comes in": "prompt", "blocks what goes out": "response"}
    seen: list[tuple[str, str]] = []
    done = threading.Event()
    default = own_policies / "quick.yaml"
    default.write_text(VERSIONS["blocks what comes in"])
    pair = {"prompt": PHRASE, "response": PHRASE}

    def load(guard: Guard) -> None:
        with httpx2.Client(base_url=guard.url, timeout=30) as client:
            while not done.is_set():
                reply = client.post("/moderate", json={"pairs": [pair], "policy": "quick"}).json()
                (span,) = reply["results"][0]["spans"]
                seen.append((reply["policy"]["digest"], span["path"].rpartition(".")[2]))

    with (
        running(guard_settings(own_policies)) as guard,
        httpx2.Client(base_url=guard.url, timeout=30) as client,
    ):
        callers = [threading.Thread(target=load, args=(guard,)) for _ in range(4)]
        digests: dict[str, str] = {}
        for caller in callers:
            caller.start()
        for name in [*VERSIONS] * 6:
            default.write_text(VERSIONS[name])
            assert client.post("/admin/policies/reload").json()["ok"]
            info = client.get("/info").json()["policies"]
            (digest,) = [policy["digest"] for policy in info if policy["name"] == "quick"]
            digests[digest] = expected[name]
        done.set()
        for caller in callers:
            caller.join(30)

    assert {digest for digest, _ in seen} == set(digests)
    assert all(digests[digest] == side for digest, side in seen)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("strict.yaml", "{nonsense"),
        ("strict.yaml", "input: {detectors: [nobody]}\noutput: {detectors: [keywords]}"),
        ("golden.yaml", "- {policy: default, text: What a lovely day, action: block}"),
        ("golden.yaml", "- {policy: lenient, text: What a lovely day, action: block}"),
    ],
    ids=["no YAML", "unknown detector", "golden text differs", "golden policy unknown"],
)
def test_policies_that_are_wrong_are_not_put_into_force(
    guard: Guard, policies: Path, client: httpx2.Client, name: str, content: str
) -> None:
    before = client.get("/info").json()["policies"]
    good = (policies / name).read_text()
    (policies / name).write_text(content)

    refused = client.post("/admin/policies/reload")
    (policies / name).write_text(good)

    assert refused.status_code == 409
    assert not refused.json()["ok"]
    assert refused.json()["error"].startswith(name)
    assert client.get("/info").json()["policies"] == before
    assert client.post("/admin/policies/reload").json()["ok"]


@pytest.fixture(scope="module")
def locked(policies: Path, only_upstream: tuple[FakeUpstream, str]) -> Iterator[Guard]:
    keys = (
        api_key("operator", may_administer=True, may_loosen=True),
        api_key("tenant", policies=("quick",), default_policy="quick"),
        api_key("hasty", requests_per_minute=2),
    )
    settings = guard_settings(policies, only_upstream[1], auth=AuthSettings(keys=keys))
    with running(settings) as started:
        yield started


@pytest.fixture
def locked_client(locked: Guard, upstream: FakeUpstream) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=locked.url, timeout=30) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [{}, bearer("nobody"), {"authorization": "Basic operator"}])
@pytest.mark.parametrize(
    "path", ["/moderate", "/v1/moderations", "/v1/chat/completions", "/admin/policies/reload"]
)
def test_without_a_key_nothing_is_judged(
    locked_client: httpx2.Client, path: str, headers: dict[str, str]
) -> None:
    reply = locked_client.post(path, json={"input": PHRASE}, headers=headers)

    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"


def test_probes_and_metrics_need_no_key(locked_client: httpx2.Client) -> None:
    for path in ("/healthz", "/startupz", "/readyz", "/metrics"):
        assert locked_client.get(path).status_code == 200
    assert locked_client.get("/info").status_code == 401


def test_a_tenant_has_its_own_policy_and_no_other(locked_client: httpx2.Client) -> None:
    def judged(**wish: Any) -> httpx2.Response:
        return locked_client.post(
            "/moderate", json={"input": "x", **wish}, headers=bearer("tenant")
        )

    assert judged().json()["policy"]["name"] == "quick"
    for name in ("default", "no-such-policy"):
        refused = judged(policy=name)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_policy")
    assert judged(thresholds={"blocklist": 0.9}).json()["error"]["code"] == "policy_loosened"


def test_only_an_administrator_reloads(locked_client: httpx2.Client) -> None:
    refused = locked_client.post("/admin/policies/reload", headers=bearer("tenant"))
    done = locked_client.post("/admin/policies/reload", headers=bearer("operator"))

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert done.status_code == 200


def test_a_key_that_may_loosen_loosens(locked_client: httpx2.Client) -> None:
    wish = {"input": PHRASE, "policy": "quick", "detectors": ["pii"]}
    reply = locked_client.post("/moderate", json=wish, headers=bearer("operator"))

    assert reply.json()["verdict"] == "allow"


def test_a_caller_that_asks_too_often_is_told_when_to_come_back(
    locked_client: httpx2.Client,
) -> None:
    replies = [locked_client.get("/info", headers=bearer("hasty")) for _ in range(4)]

    assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
    assert replies[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert locked_client.get("/info", headers=bearer("tenant")).status_code == 200


def test_our_keys_do_not_reach_the_upstream(
    locked_client: httpx2.Client, upstream: FakeUpstream
) -> None:
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    reply = locked_client.post("/v1/chat/completions", json=asked, headers=bearer("tenant"))

    assert reply.status_code == 200
    assert reply.headers["x-guard-policy"].startswith("quick ")
    assert "tenant" not in str(upstream.requests[0].headers)
