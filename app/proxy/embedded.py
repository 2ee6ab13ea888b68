"""The embedded language model as an upstream: the same replies, without a socket.

Knows nothing about models: it turns the dictionaries of a chat engine into bodies and events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

import orjson

from app.proxy import sse
from app.proxy.upstream import UpstreamReply


class EmbeddedChat(Protocol):
    """What is asked of the engine. It raises our own errors; none of them is an `UpstreamError`."""

    async def complete(self, payload: dict[str, Any]) -> dict[str, Any]:
        """A whole chat completion."""
        ...

    async def open_stream(self, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Admit the request, then yield its chunks; closing the generator stops the model."""
        ...

    def models(self) -> list[dict[str, Any]]:
        """The models, as OpenAI lists them."""
        ...


class EmbeddedUpstream:
    """Answers chats with the embedded model. Its errors pass as they are.

    The engine belongs to whoever made it: `close` leaves it alone.
    """

    def __init__(self, chat: EmbeddedChat) -> None:
        self._chat = chat

    async def chat(
        self, payload: Mapping[str, Any], *, headers: Mapping[str, str]
    ) -> UpstreamReply:
        """Answer a chat; the headers mean nothing here."""
        del headers
        if not payload.get("stream"):
            return UpstreamReply(200, body=orjson.dumps(await self._chat.complete(dict(payload))))
        chunks = await self._chat.open_stream(dict(payload))
        return UpstreamReply(200, events=_events(chunks), aclose=chunks.aclose)

    async def models(self, *, headers: Mapping[str, str]) -> UpstreamReply:
        """The embedded model alone."""
        del headers
        return UpstreamReply(
            200, body=orjson.dumps({"object": "list", "data": self._chat.models()})
        )

    async def close(self) -> None:
        """Nothing to let go of."""


async def _events(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[str]:
    async for chunk in chunks:
        yield orjson.dumps(chunk).decode()
    yield sse.DONE_DATA
