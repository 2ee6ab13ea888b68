"""Request bodies: bytes to a model or a JSON object, refusals that repeat nothing of them.

Knows nothing about what the bodies mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.domain.errors import MisshapenBody, RequestError

_MAX_DETAILS: Final = 10
_Model = TypeVar("_Model", bound=BaseModel)


async def read_model(request: Request, model: type[_Model]) -> _Model:
    """The request's body as a `model`, whatever its content type says.

    Raises:
        RequestError: It is not JSON.
        MisshapenBody: It is JSON of another shape.
    """
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, model) from None


async def read_object(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object, unknown fields kept.

    Raises:
        RequestError: It is not JSON, or not an object.
    """
    try:
        payload = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        raise _not_json() from None
    if not isinstance(payload, dict):
        raise RequestError("the body is not a JSON object")
    return payload


def as_model(value: Any, model: type[_Model], *, at: str) -> _Model:
    """One field of a JSON object as a `model`; `at` is the field's name.

    Raises:
        RequestError: It is nested too deeply.
        MisshapenBody: It has another shape.
    """
    try:
        # Through JSON again, where a strict model still takes the names of its enumerations.
        return model.model_validate_json(orjson.dumps(value))
    except orjson.JSONEncodeError:
        raise RequestError("the body is nested too deeply", param=at) from None
    except ValidationError as error:
        raise _refusal(error, model, at) from None


def documented_body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that the route reads itself (see `openapi.py`)."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}
    }


def _not_json() -> RequestError:
    return RequestError("the body is not valid JSON")


def _refusal(error: ValidationError, model: type[BaseModel], at: str = "") -> RequestError:
    # Neither message nor input nor context of an error is passed on: they can hold user text.
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if any(one["type"] == "json_invalid" for one in errors):
        return _not_json()
    known = _field_names(model)
    details = [
        {"param": _place(one["loc"], known, at), "type": one["type"]}
        for one in errors[:_MAX_DETAILS]
    ]
    places = ", ".join(dict.fromkeys(f"{d['param']} ({d['type']})" for d in details))
    return MisshapenBody(
        f"the body does not have the expected shape: {places}",
        param=details[0]["param"] or None,
        details=details,
    )


def _place(location: tuple[int | str, ...], known: frozenset[str], at: str) -> str:
    """A dotted path in which only our own field names and indices appear, not the user's keys."""
    steps = [str(step) if isinstance(step, int) or step in known else "*" for step in location]
    return ".".join([at, *steps] if at else steps) or "body"


@cache
def _field_names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(_properties(model.model_json_schema()))


def _properties(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            yield from properties
        for value in schema.values():
            yield from _properties(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _properties(value)
