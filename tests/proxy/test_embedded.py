from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from app.domain.errors import Overloaded
from app.proxy.embedded import EmbeddedUpstream
from tests.fake_upstream import delta, finish
from tests.proxy.chats import QUESTION, STREAMED, policy, proxy_of, read


class Chat:
    def __init__(self) -> None:
        self.stopped = False
        self.error: Exception | None = None

    async def complete(self, payload: dict[str, Any]) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        message = {"role": "assistant", "content": "forbidden" if payload.get("bad") else "Hi"}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def open_stream(self, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        if self.error is not None:
            raise self.error
        return self._chunks()

    async def _chunks(self) -> AsyncGenerator[dict[str, Any]]:
        try:
            yield delta(role="assistant", content="")
            yield delta(content="Hello")
            yield finish()
        finally:
            self.stopped = True

    def models(self) -> list[dict[str, Any]]:
        return [{"id": "tiny", "object": "model"}]


async def test_it_answers_whole_and_streamed() -> None:
    chat = Chat()
    proxy, _ = proxy_of(EmbeddedUpstream(chat))
    reply = await proxy.chat(QUESTION, policy=policy(), headers={})
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "Hi"  # type: ignore[arg-type]
    reply = await proxy.chat({**QUESTION, "bad": True}, policy=policy(), headers={})
    assert json.loads(reply.body)["choices"][0]["finish_reason"] == "content_filter"  # type: ignore[arg-type]
    seen = await read(await proxy.chat(STREAMED, policy=policy(), headers={}))
    assert seen.text() == "Hello"
    assert seen.done
    assert chat.stopped


async def test_closing_the_stream_stops_the_model() -> None:
    chat = Chat()
    reply = await EmbeddedUpstream(chat).chat({"stream": True}, headers={})
    assert reply.events is not None
    await anext(reply.events)
    await reply.events.aclose()
    await reply.aclose()
    assert chat.stopped


async def test_the_models_are_listed_as_openai_does() -> None:
    proxy, _ = proxy_of(EmbeddedUpstream(Chat()))
    reply = await proxy.models(headers={})
    assert json.loads(reply.body) == {  # type: ignore[arg-type]
        "object": "list",
        "data": [{"id": "tiny", "object": "model"}],
    }


@pytest.mark.parametrize("payload", [QUESTION, STREAMED])
async def test_its_errors_pass_as_they_are(payload: dict[str, Any]) -> None:
    chat = Chat()
    chat.error = Overloaded("full", retry_after=3)
    proxy, _ = proxy_of(EmbeddedUpstream(chat))
    with pytest.raises(Overloaded):
        await proxy.chat(payload, policy=policy(), headers={})
