"""The OpenAPI document: shared error replies, and the bodies that routes read themselves.

Knows nothing about what the routes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.errors import ErrorReply

_DESCRIPTIONS: Final[Mapping[int | str, str]] = MappingProxyType(
    {
        400: "The request cannot be served as it stands, or its input was blocked.",
        401: "No API key, or not one of ours.",
        403: "The key may not do this.",
        413: "The body is too large, or has too many texts.",
        422: "The body is JSON of another shape. The reply does not repeat it.",
        429: "Too many requests, or a full queue; `Retry-After` says when to try again.",
        500: "The service itself stumbled.",
        502: "The language model could not be reached.",
        503: "Not ready, or not done in time; `Retry-After` says when to try again.",
        504: "The language model did not answer in time.",
        "4XX": "What the language model refuses is relayed with its own status.",
        "5XX": "The language model's own failures are relayed with their status.",
    }
)
_BEARER: Final[dict[str, list[str]]] = {"HTTPBearer": []}


def errors(*statuses: int | str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can fail with these statuses."""
    return {
        status: {"model": ErrorReply, "description": _DESCRIPTIONS[status]} for status in statuses
    }


def complete_document(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Add to the app's OpenAPI document what FastAPI does not see: bodies, keys being optional."""
    generate: Callable[[], dict[str, Any]] = app.openapi

    def completed() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        _, definitions = models_json_schema(
            [(model, "validation") for model in models],
            ref_template="#/components/schemas/{model}",
        )
        for name, schema in definitions["$defs"].items():
            schemas.setdefault(name, schema)
        for operation in (one for path in document["paths"].values() for one in path.values()):
            if operation.get("security") == [_BEARER]:
                operation["security"] = [_BEARER, {}]  # none is needed while none is configured
        return document

    app.openapi = completed  # type: ignore[method-assign] # FastAPI's own way to extend it
