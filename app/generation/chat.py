"""The embedded model behind the words of OpenAI's chat completions: dicts in, dicts out.

Knows nothing about HTTP, nor how text is generated.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from typing import Any, Final, Protocol

from app.domain.errors import ContextLengthExceeded
from app.generation.chat_request import ChatRequest, parse_chat
from app.generation.chatml import ChatMl
from app.generation.request import (
    Delta,
    FinishReason,
    GenerationRequest,
)

_OWNER: Final = "HuggingFaceTB"


class DeltaStream(AsyncIterable[Delta], Protocol):
    """The answer to one admitted request."""

    def close(self) -> None:
        """Stop the work on it."""
        ...


class Generator(Protocol):
    """The part of an engine that a chat needs."""

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus answer."""
        ...

    def submit(self, request: GenerationRequest) -> DeltaStream:
        """Admit a request or refuse it at once."""
        ...


class EmbeddedChat:
    """Chat completions of one model.

    Args:
        generator: a running engine.
        format_prompt: the model's chat format.
        model: its name in the API.
    """

    def __init__(self, generator: Generator, format_prompt: ChatMl, model: str) -> None:
        self._generator = generator
        self._format_prompt = format_prompt
        self._model = model
        self._created = int(time.time())

    def models(self) -> list[dict[str, Any]]:
        """The entries of `GET /v1/models`."""
        return [
            {"id": self._model, "object": "model", "created": self._created, "owned_by": _OWNER}
        ]

    async def complete(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Answer as one `chat.completion`. Cancelling the caller stops the generation.

        Raises:
            RequestError: the payload cannot be served.
            Overloaded: too much is waiting already.
            NotReady: the engine does not run, or stopped meanwhile.
            UpstreamError: the model failed on this request.
        """
        chat = parse_chat(payload, self._model)
        request = await self._request(chat)
        texts: list[list[str]] = [[] for _ in range(chat.choices)]
        ends: list[FinishReason | None] = [None] * chat.choices
        tokens = [0] * chat.choices
        stream = self._generator.submit(request)
        try:
            async for delta in stream:
                texts[delta.choice].append(delta.text)
                ends[delta.choice] = delta.finish_reason
                tokens[delta.choice] = delta.tokens
        finally:
            stream.close()
        return {
            **self._envelope("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": "".join(text), "refusal": None},
                    "logprobs": None,
                    "finish_reason": ends[index],
                }
                for index, text in enumerate(texts)
            ],
            "usage": _usage(request, sum(tokens)),
        }

    async def open_stream(self, payload: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Return the `chat.completion.chunk`s of an admitted request; close it to stop.

        Raises the same as `complete`, before the first chunk where that is known.
        """
        chat = parse_chat(payload, self._model)
        request = await self._request(chat)
        chunks = self._chunks(self._generator.submit(request), request, chat)
        # A generator that was never started runs no `finally` when it is closed: start it here.
        await anext(chunks)
        return chunks

    async def _chunks(
        self, stream: DeltaStream, request: GenerationRequest, chat: ChatRequest
    ) -> AsyncGenerator[dict[str, Any], None]:
        envelope = self._envelope("chat.completion.chunk")
        if chat.include_usage:
            envelope["usage"] = None
        tokens = [0] * chat.choices
        try:
            yield {}  # taken by `open_stream`
            for index in range(chat.choices):
                yield _chunk(envelope, index, {"role": "assistant", "content": ""})
            async for delta in stream:
                tokens[delta.choice] = delta.tokens
                if delta.text:
                    yield _chunk(envelope, delta.choice, {"content": delta.text})
                if delta.finish_reason:
                    yield _chunk(envelope, delta.choice, {}, delta.finish_reason)
            if chat.include_usage:
                yield {**envelope, "choices": [], "usage": _usage(request, sum(tokens))}
        finally:
            stream.close()

    async def _request(self, chat: ChatRequest) -> GenerationRequest:
        # Off the event loop: a long conversation takes many milliseconds to encode.
        prompt_ids = await asyncio.to_thread(self._format_prompt.encode, chat.turns)
        room = self._generator.context_tokens - len(prompt_ids)
        if room < 1:
            raise ContextLengthExceeded(
                f"the messages take {len(prompt_ids)} tokens; the embedded model takes "
                f"{self._generator.context_tokens} together with its answer",
                param="messages",
            )
        return GenerationRequest(
            prompt_ids=prompt_ids,
            # An upper bound: where the context ends first, the finish reason `length` says so.
            max_tokens=min(chat.max_tokens, room),
            sampling=chat.sampling,
            stop=chat.stop,
            choices=chat.choices,
        )

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._model,
        }


def _chunk(
    envelope: dict[str, Any],
    index: int,
    delta: dict[str, str],
    finish_reason: FinishReason | None = None,
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**envelope, "choices": [choice]}


def _usage(request: GenerationRequest, completion_tokens: int) -> dict[str, int]:
    prompt_tokens = len(request.prompt_ids)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
