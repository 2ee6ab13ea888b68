"""`POST /v1/chat/completions` and `GET /v1/models`: the guarded chat API.

Knows nothing about the chat's wire format: JSON goes to the proxy, its reply goes out as it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.api.body import as_model, documented_body, read_object
from app.api.choice import GuardrailsWish, choose_policy
from app.api.dependencies import CallerOf, ComponentsOf
from app.api.documentation import errors
from app.api.presence import while_present
from app.proxy.reply import ProxyReply

router = APIRouter(tags=["chat"])

# A proxy in front of us must neither keep nor collect a stream.
_STREAM_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ChatRequestBody(BaseModel):
    """A chat request as OpenAI defines it. All further fields go to the language model."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="What the language model is called upstream.")
    messages: list[dict[str, Any]] = Field(min_length=1, description="Every field is judged.")
    stream: bool | None = Field(None, description="Answer as server-sent events.")
    guardrails: GuardrailsWish | None = Field(
        None, description="Wishes about the policy; not a field of OpenAI, and not sent upstream."
    )


class ChatReplyBody(BaseModel):
    """A chat reply as OpenAI defines it."""

    model_config = ConfigDict(extra="allow")

    choices: list[dict[str, Any]]


class ModelsReplyBody(BaseModel):
    """The models of the language model's server."""

    model_config = ConfigDict(extra="allow")

    data: list[dict[str, Any]]


@router.post(
    "/v1/chat/completions",
    summary="Chat, guarded",
    response_model=ChatReplyBody,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **errors(400, 401, 413, 422, 429, 500, 502, 503, 504, "4XX", "5XX"),
    },
    openapi_extra=documented_body(ChatRequestBody),
)
async def chat_completions(request: Request, parts: ComponentsOf, caller: CallerOf) -> Response:
    """Judges the request, asks the language model, judges its answer.

    A blocked request is a 400 with code `content_filter`; a blocked answer ends with finish reason
    `content_filter`. With `stream` the answer comes as server-sent events.
    """
    payload = await read_object(request)
    wish = payload.get("guardrails")
    policy = choose_policy(
        parts,
        caller,
        request,
        None if wish is None else as_model(wish, GuardrailsWish, at="guardrails"),
    )
    work = parts.proxy.chat(payload, policy=policy, headers=dict(request.headers))
    return _response(await while_present(request, work))


@router.get(
    "/v1/models",
    summary="List the language models",
    response_model=ModelsReplyBody,
    responses=errors(401, 429, 500, 502, 503, 504, "4XX", "5XX"),
)
async def models(request: Request, parts: ComponentsOf, _: CallerOf) -> Response:
    """What the language model's server says about its models."""
    return _response(await parts.proxy.models(headers=dict(request.headers)))


class ClosingStream(StreamingResponse):
    """A stream that closes its source however it ends: a client that leaves stops the model."""

    def __init__(self, source: AsyncIterator[bytes], **options: Any) -> None:
        super().__init__(source, **options)
        self._source = source

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if isinstance(self._source, AsyncGenerator):
                await self._source.aclose()


def _response(reply: ProxyReply) -> Response:
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, dict(reply.headers), reply.media_type)
    return ClosingStream(
        reply.body,
        status_code=reply.status,
        headers={**reply.headers, **_STREAM_HEADERS},
        media_type=reply.media_type,
    )
