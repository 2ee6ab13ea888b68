"""What routes ask FastAPI for: the components and the caller. The only reader of settings here.

Knows nothing about what a route does with them.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.auth import Caller, KeyRing
from app.api.components import Components, Limits
from app.api.ratelimit import RequestLimiter, rate_limit_storage
from app.config import AuthSettings, CacheSettings, ServerSettings
from app.metrics import Metrics

_bearer = HTTPBearer(
    auto_error=False, description="An API key. Not needed while none is configured."
)


def limits(settings: ServerSettings) -> Limits:
    """The bounds of one request."""
    return Limits(settings.max_body_bytes, settings.max_inputs, settings.deadline_ms)


def keyring(settings: AuthSettings) -> KeyRing:
    """The configured keys."""
    return KeyRing(
        tuple((key.sha256, Caller(**key.model_dump(exclude={"sha256"}))) for key in settings.keys)
    )


def request_limiter(
    auth: AuthSettings, cache: CacheSettings, *, metrics: Metrics
) -> RequestLimiter:
    """The rate limit; it is shared where the cache of verdicts is."""
    shared = cache.redis_url if cache.backend == "redis" else None
    storage = rate_limit_storage(shared.get_secret_value() if shared else None)
    return RequestLimiter(auth.requests_per_minute, storage=storage, metrics=metrics)


async def components(request: Request) -> Components:
    """What the lifespan built."""
    built: Components = request.state.components
    return built


ComponentsOf = Annotated[Components, Depends(components)]


async def caller(
    request: Request,
    parts: ComponentsOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Whose request this is, counted against the rate limit."""
    key = credentials.credentials if credentials else None
    address = request.client.host if request.client else None
    known = parts.keyring.caller(key, address)
    await parts.limiter.admit(known)
    return known


CallerOf = Annotated[Caller, Depends(caller)]
