"""The rate limit."""

from __future__ import annotations

import pytest
import structlog
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.errors import StorageError
from prometheus_client import CollectorRegistry

from app.api.auth import Caller
from app.api.ratelimit import RequestLimiter, rate_limit_storage
from app.config import AuthSettings
from app.domain.errors import RateLimited
from app.metrics import Metrics
from tests.api.world import api_key, bearer


class BrokenStorage(MemoryStorage):
    async def get_sliding_window(self, key: str, expiry: int):
        raise StorageError(ConnectionError("secret address"))

    async def acquire_sliding_window_entry(self, key, limit, expiry, amount=1):
        raise StorageError(ConnectionError("secret address"))


def limiter(per_minute: int, storage=None) -> RequestLimiter:
    return RequestLimiter(
        per_minute,
        storage=storage or rate_limit_storage(None),
        metrics=Metrics(CollectorRegistry()),
    )


async def test_callers_have_their_own_allowance():
    limit = limiter(2)
    for name in ("a", "a", "b", "b"):
        await limit.admit(Caller(name))
    with pytest.raises(RateLimited) as refused:
        await limit.admit(Caller("a"))
    assert 0 < refused.value.retry_after <= 120


async def test_a_key_may_have_a_limit_of_its_own():
    limit = limiter(1)
    for _ in range(3):
        await limit.admit(Caller("large", requests_per_minute=3))
    with pytest.raises(RateLimited):
        await limit.admit(Caller("large", requests_per_minute=3))


def test_instances_share_the_counters_where_there_is_redis():
    assert isinstance(rate_limit_storage("redis://localhost:6379/0"), RedisStorage)


async def test_a_counter_that_is_gone_admits_and_says_so():
    with structlog.testing.capture_logs() as logs:
        await limiter(1, BrokenStorage()).admit(Caller("a"))
    assert [log["event"] for log in logs] == ["rate_limit_unavailable"]
    assert "secret" not in str(logs)


def test_beyond_the_limit_is_429(world):
    world.auth = AuthSettings(keys=(api_key("busy"), api_key("calm")), requests_per_minute=2)
    with world.client() as client:
        busy = [
            client.post("/moderate", json={"input": "x"}, headers=bearer("busy")) for _ in range(3)
        ]
        calm = client.get("/info", headers=bearer("calm"))
    assert [reply.status_code for reply in busy] == [200, 200, 429]
    assert int(busy[2].headers["retry-after"]) >= 1
    assert busy[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert calm.status_code == 200
    refused = world.metrics.registry.get_sample_value(
        "guardrail_overloaded_total", {"resource": "rate_limit"}
    )
    assert refused == 1.0


def test_without_keys_the_address_counts(world):
    world.auth = AuthSettings(requests_per_minute=1)
    with world.client() as client:
        assert [client.get("/info").status_code for _ in range(2)] == [200, 429]


def test_probes_are_never_limited(world):
    world.auth = AuthSettings(requests_per_minute=1)
    with world.client() as client:
        assert {client.get("/healthz").status_code for _ in range(5)} == {200}
