"""How often a caller may call: a sliding window of one minute per caller.

Knows nothing about HTTP or keys: a caller is an id and an allowance.
"""

from __future__ import annotations

import time

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from app.api.auth import Caller
from app.domain.errors import RateLimited
from app.metrics import Metrics

_log = structlog.get_logger(__name__)


def rate_limit_storage(redis_url: str | None) -> Storage:
    """Counts in this process, or shared by all instances through Redis."""
    if redis_url is None:
        storage = storage_from_string("async+memory://")
    else:
        storage = storage_from_string(
            f"async+{redis_url}", implementation="redispy", wrap_exceptions=True
        )
    if not isinstance(storage, Storage):
        raise TypeError("the storage of the rate limit is not asynchronous")
    return storage


class RequestLimiter:
    """Admits or refuses requests of a caller."""

    def __init__(self, requests_per_minute: int, *, storage: Storage, metrics: Metrics) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._common = RateLimitItemPerMinute(requests_per_minute)
        self._metrics = metrics

    async def admit(self, caller: Caller) -> None:
        """Count one request.

        A counter that cannot be reached admits: the limit protects us, not the caller's users.

        Raises:
            RateLimited: There were too many in the last minute.
        """
        own = caller.requests_per_minute
        limit = self._common if own is None else RateLimitItemPerMinute(own)
        try:
            if await self._limiter.hit(limit, caller.id):
                return
            reset = (await self._limiter.get_window_stats(limit, caller.id)).reset_time
        except StorageError as error:
            _log.warning("rate_limit_unavailable", error=type(error.storage_error).__name__)
            return
        self._metrics.overloaded.labels(resource="rate_limit").inc()
        raise RateLimited(
            f"more than {limit.amount} requests in a minute", retry_after=reset - time.time()
        )
