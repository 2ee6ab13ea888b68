"""One guard with the shipped model, in front of an upstream that does what a test tells it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.guards import Guard, guard_settings, running, write_policies
from tests.fake_upstream import FakeUpstream, serve_upstream, whole


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policies(tmp_path_factory.mktemp("guard") / "policies")


@pytest.fixture(scope="session")
def only_upstream() -> Iterator[tuple[FakeUpstream, str]]:
    upstream = FakeUpstream()
    with serve_upstream(upstream) as url:
        yield upstream, f"{url}/v1"


@pytest.fixture(scope="session")
def guard(policies: Path, only_upstream: tuple[FakeUpstream, str]) -> Iterator[Guard]:
    with running(guard_settings(policies, only_upstream[1])) as started:
        yield started


@pytest.fixture
def upstream(only_upstream: tuple[FakeUpstream, str]) -> FakeUpstream:
    """The one upstream, as if it were new."""
    found = only_upstream[0]
    found.answer(whole({"content": "Good day to you."}))
    found.requests.clear()
    found.client_left.clear()
    return found


@pytest.fixture
def client(guard: Guard, upstream: FakeUpstream) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=guard.url, timeout=30) as client:
        yield client
