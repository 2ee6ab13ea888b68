"""What surrounds every route: the limit on bodies and the last barrier for failures.

Pure ASGI; knows nothing about routes. Nothing here buffers a body.
"""

from __future__ import annotations

from typing import Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response, internal_error_response
from app.domain.errors import TooLarge

_log = structlog.get_logger(__name__)

_MAX_DIGITS: Final = 19  # Python refuses to read numbers of thousands of digits


class BodyLimit:
    """Refuses bodies over `max_bytes`, by their declared length or by what really arrives."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as long as its body is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _declared_length(scope) > self._max_bytes:
            await error_response(self._refusal())(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                # Raised where the route reads its body; the error handlers answer it.
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_bytes} bytes")


def _declared_length(scope: Scope) -> int:
    value = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
    return int(value[:_MAX_DIGITS]) if value.isdigit() else 0


class FaultBarrier:
    """Answers what nobody else caught with a bare 500, and logs it.

    Messages of foreign exceptions can quote user text: neither the reply nor the server behind us
    gets to see them, and our log writes only their classes and frames.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never lets an exception of a request that can be answered out."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the outermost loop: it must answer
            route = getattr(scope.get("route"), "path", "")
            _log.error("request_failed", route=route, exc_info=error)
            if started:
                raise BrokenReply from None
            await internal_error_response()(scope, receive, send)


class BrokenReply(Exception):
    """A reply that had begun could not be completed; the reason is in the log."""
