"""What an exception looks like over HTTP: one table of statuses, one shape of error body.

Knows nothing about routes. No text of the user is ever in an error body or in the log of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.domain.errors import (
    CircuitOpen,
    DeadlineExceeded,
    DetectorError,
    MisshapenBody,
    NotReady,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RequestError,
    SluicewayError,
    TooLarge,
    Unauthenticated,
    UnknownModel,
    UpstreamError,
    UpstreamTimeout,
)

STATUS: Final[Mapping[type[SluicewayError], int]] = MappingProxyType(
    {
        SluicewayError: 500,
        RequestError: 400,
        Unauthenticated: 401,
        PermissionDenied: 403,
        TooLarge: 413,
        MisshapenBody: 422,
        UnknownModel: 404,
        RateLimited: 429,
        Overloaded: 429,
        NotReady: 503,
        DetectorError: 503,
        DeadlineExceeded: 503,
        CircuitOpen: 503,
        UpstreamError: 502,
        UpstreamTimeout: 504,
    }
)
"""Status of each class of exception; a class that is not here has its parent's."""

_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)
_RETRYABLE: Final = frozenset({429, 503})
_SERVER_ERROR: Final = 500


class ErrorDetail(BaseModel):
    """What went wrong, in the words of the OpenAI API."""

    message: str = Field(description="For people. Never repeats text of the request.")
    type: str = Field(description="Kind of error, such as `invalid_request_error`.")
    param: str | None = Field(None, description="The field that is to blame.")
    code: str | None = Field(None, description="For programs, such as `unknown_policy`.")
    details: list[dict[str, str]] | None = Field(
        None, description="Every misshapen field: `param` says where, `type` says what is wrong."
    )


class ErrorReply(BaseModel):
    """The body of every reply that is not a success."""

    error: ErrorDetail


def status_of(error: SluicewayError) -> int:
    """The HTTP status of an exception."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_body(error: SluicewayError) -> dict[str, Any]:
    """The value of `error` in a reply."""
    status = status_of(error)
    # A 500 is about our own folders and files, which are not the caller's business.
    message = "internal error" if status == _SERVER_ERROR else str(error)
    body = _body(status, message, error.code, getattr(error, "param", None))
    if isinstance(error, MisshapenBody):
        body["details"] = error.details
    return body


def error_response(error: SluicewayError) -> Response:
    """The whole reply to a request that failed with `error`."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status in _RETRYABLE:
        headers["retry-after"] = str(max(1, math.ceil(getattr(error, "retry_after", 1.0))))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return _response(status, error_body(error), headers)


def internal_error_response() -> Response:
    """The reply to a request on which the service itself stumbled: no details."""
    return _response(_SERVER_ERROR, _body(_SERVER_ERROR, "internal error", "internal_error"))


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception in the shape of this module."""
    app.add_exception_handler(SluicewayError, _on_sluiceway_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_sluiceway_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, SluicewayError):
        raise TypeError("not an error of ours")
    return error_response(error)


async def _on_validation_error(_: Request, __: Exception) -> Response:
    # Bodies are validated in `body.py`; what is left are path and header parameters.
    return error_response(MisshapenBody("a parameter has the wrong shape", param=None, details=[]))


async def _on_http_exception(_: Request, error: Exception) -> Response:
    """What the router itself refuses: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise TypeError("not an HTTP exception")
    words = {404: "not_found", 405: "method_not_allowed"}
    code = words.get(error.status_code, "invalid_request")
    body = _body(error.status_code, code.replace("_", " "), code)
    return _response(error.status_code, body, error.headers)


def _body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    default = "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    return {
        "message": message,
        "type": _TYPES.get(status, default),
        "param": param,
        "code": code,
    }


def _response(
    status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        orjson.dumps({"error": body}),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
