"""Operations: probes, metrics, what is loaded, and reloading the policies.

Knows nothing about what the parts do: it shows what they say about themselves.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST, choose_encoder, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.api.auth import Caller
from app.api.components import Components
from app.api.dependencies import CallerOf, ComponentsOf
from app.api.documentation import errors
from app.api.replies import json_response

router = APIRouter(tags=["operations"])

_UNAVAILABLE: Final = 503
_CONFLICT: Final = 409


class ProbeReply(BaseModel):
    """The answer of a probe."""

    status: str
    problems: dict[str, str] = Field({}, description="What is wrong, by component.")


class PolicyInfo(BaseModel):
    """A policy that the caller may use."""

    name: str
    digest: str
    description: str
    enforced: bool


class DetectorInfo(BaseModel):
    """A detector that policies may name."""

    name: str
    digest: str


class ModelInfoReply(BaseModel):
    """A model that was loaded."""

    name: str
    revision: str
    digest: str
    licence: str
    device: str


class LimitsInfo(BaseModel):
    """Bounds of one request."""

    max_body_bytes: int
    max_inputs: int
    deadline_ms: int


class InfoReply(BaseModel):
    """What is running."""

    version: str
    default_policy: str
    policies: list[PolicyInfo]
    detectors: list[DetectorInfo]
    models: list[ModelInfoReply]
    limits: LimitsInfo


class ReloadReply(BaseModel):
    """How a reload ended."""

    ok: bool
    policies: list[str] = Field(description="The policies in force now.")
    error: str = Field(description="Why the last good policies are still in force.")


_NOT_YET: Final[dict[int | str, dict[str, Any]]] = {
    _UNAVAILABLE: {"model": ProbeReply, "description": "Not now."}
}


@router.get("/healthz", summary="Is the process alive?", response_model=ProbeReply)
async def healthz() -> Response:
    """The event loop turns; nothing else is asked."""
    return json_response({"status": "alive"})


@router.get(
    "/startupz",
    summary="Has everything been loaded?",
    response_model=ProbeReply,
    responses=_NOT_YET,
)
async def startupz(parts: ComponentsOf) -> Response:
    """Stays true once the detectors have been asked for the first time."""
    if parts.readiness.started:
        return json_response({"status": "started"})
    return json_response({"status": "starting"}, status=_UNAVAILABLE)


@router.get(
    "/readyz",
    summary="Can requests be served now?",
    response_model=ProbeReply,
    responses=_NOT_YET,
)
async def readyz(parts: ComponentsOf) -> Response:
    """Every detector gave known answers to known texts a short while ago, every worker lives."""
    ready, problems = await parts.readiness.ready()
    if ready:
        return json_response({"status": "ready"})
    return json_response({"status": "not_ready", "problems": problems}, status=_UNAVAILABLE)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, parts: ComponentsOf) -> Response:
    """In the text format, or in OpenMetrics for those who ask for it."""
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # a version that is no number
        encode, content_type = generate_latest, CONTENT_TYPE_LATEST
    return Response(encode(parts.metrics.registry), headers={"content-type": content_type})


@router.get(
    "/info",
    summary="What is running",
    response_model=InfoReply,
    responses=errors(401, 429, 500),
)
async def info(parts: ComponentsOf, caller: CallerOf) -> Response:
    """Version, models, detectors, limits, and the policies that the caller may use."""
    return json_response(
        {
            "version": parts.version,
            "default_policy": caller.default_policy or parts.policies.default,
            "policies": _policies(parts, caller),
            "detectors": [
                {"name": detector.name, "digest": detector.digest}
                for detector in parts.engine.detectors.values()
            ],
            "models": [asdict(model) for model in parts.models],
            "limits": asdict(parts.limits),
        }
    )


@router.post(
    "/admin/policies/reload",
    summary="Load the policies again",
    response_model=ReloadReply,
    responses={
        _CONFLICT: {"model": ReloadReply, "description": "The policies cannot be loaded."},
        **errors(401, 403, 429, 500),
    },
)
async def reload_policies(parts: ComponentsOf, caller: CallerOf) -> Response:
    """Reads, checks and replays the policies, then swaps all of them.

    After a failure the last good ones stay. Needs a key that may administer; without configured
    keys, a caller on the same machine.
    """
    caller.check_administrator()
    report = await parts.policies.reload()
    payload = {"ok": report.ok, "policies": report.policies, "error": report.error}
    return json_response(payload, status=200 if report.ok else _CONFLICT)


def _policies(parts: Components, caller: Caller) -> list[dict[str, str | bool]]:
    usable = [parts.policies.get(n) for n in parts.policies.names() if caller.may_use(n)]
    return [
        {
            "name": policy.name,
            "digest": policy.digest,
            "description": policy.description,
            "enforced": policy.enforce,
        }
        for policy in usable
    ]
