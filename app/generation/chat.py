"""The embedded model behind the words of OpenAI's chat completions: dicts in, dicts out.

Knows nothing about HTTP, nor how text is generated.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from app.domain.errors import ContextLengthExceeded
from app.domain.policy import Policy
from app.generation.chat_request import ChatRequest, parse_chat
from app.generation.chatml import ChatMl
from app.generation.request import Delta, GenerationRequest, Rectification, Trace
from app.rectification.steering import Control

_OWNER: Final = "HuggingFaceTB"
_CONTENT_FILTER: Final = "content_filter"
_MAX_POSITIONS: Final = 256  # of changed tokens in a trace


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

    async def complete(
        self, payload: Mapping[str, Any], policy: Policy | None = None
    ) -> dict[str, Any]:
        """Answer as one `chat.completion`. Cancelling the caller stops the generation.

        A policy says how the choices are rectified.

        Raises:
            RequestError: the payload cannot be served.
            Overloaded: too much is waiting already.
            NotReady: the engine does not run, or stopped meanwhile.
            UpstreamError: the model failed on this request.
        """
        chat = parse_chat(payload, self._model)
        request = await self._request(chat, policy)
        texts: list[list[str]] = [[] for _ in range(chat.choices)]
        last: dict[int, Delta] = {}
        stream = self._generator.submit(request)
        try:
            async for delta in stream:
                texts[delta.choice].append(delta.text)
                last[delta.choice] = delta
        finally:
            stream.close()
        return {
            **self._envelope("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": _message("".join(text), last[index], policy),
                    "logprobs": None,
                    **_end(last[index], policy),
                }
                for index, text in enumerate(texts)
            ],
            "usage": _usage(request, sum(delta.tokens for delta in last.values())),
        }

    async def open_stream(
        self, payload: Mapping[str, Any], policy: Policy | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Return the `chat.completion.chunk`s of an admitted request; close it to stop.

        Raises the same as `complete`, before the first chunk where that is known.
        """
        chat = parse_chat(payload, self._model)
        request = await self._request(chat, policy)
        chunks = self._chunks(self._generator.submit(request), request, chat, policy)
        # A generator that was never started runs no `finally` when it is closed: start it here.
        await anext(chunks)
        return chunks

    async def _chunks(
        self,
        stream: DeltaStream,
        request: GenerationRequest,
        chat: ChatRequest,
        policy: Policy | None,
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
                if policy and delta.finish_reason == "refused":
                    yield _chunk(envelope, delta.choice, {"refusal": policy.refusal})
                if delta.finish_reason:
                    yield _chunk(envelope, delta.choice, {}, **_end(delta, policy))
            if chat.include_usage:
                yield {**envelope, "choices": [], "usage": _usage(request, sum(tokens))}
        finally:
            stream.close()

    async def _request(self, chat: ChatRequest, policy: Policy | None) -> GenerationRequest:
        # Off the event loop: a long conversation takes many milliseconds to encode.
        prompt_ids = await asyncio.to_thread(self._format_prompt.encode, chat.turns)
        room = self._generator.context_tokens - len(prompt_ids)
        if room < 1:
            raise ContextLengthExceeded(
                f"the messages take {len(prompt_ids)} tokens; the embedded model takes "
                f"{self._generator.context_tokens} together with its answer",
                param="messages",
            )
        sampling, rectification = chat.sampling, None
        if policy and policy.rectifies:
            most = policy.rectification.max_temperature
            sampling = replace(sampling, temperature=min(sampling.temperature, most))
            rectification = _rectification(policy)
        return GenerationRequest(
            prompt_ids=prompt_ids,
            # An upper bound: where the context ends first, the finish reason `length` says so.
            max_tokens=min(chat.max_tokens, room),
            sampling=sampling,
            stop=chat.stop,
            choices=chat.choices,
            rectification=rectification,
        )

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._model,
        }


def _rectification(policy: Policy) -> Rectification:
    rules = policy.rectification
    control = Control(rules.mode.value, rules.epsilon, rules.beta, rules.top_k, rules.gate)
    # Only caps lead into dead ends: without them, no text need be held back.
    return Rectification(control, rules.rollback_tokens if rules.mode.caps else 0, policy.name)


def _message(text: str, last: Delta, policy: Policy | None) -> dict[str, Any]:
    """What was written, or nothing of it where it led to nothing safe."""
    if policy and last.finish_reason == "refused":
        return {"role": "assistant", "content": None, "refusal": policy.refusal}
    return {"role": "assistant", "content": text, "refusal": None}


def _end(last: Delta, policy: Policy | None) -> dict[str, Any]:
    """Why a choice ended, and what rectification did to it where the policy tells."""
    refused = last.finish_reason == "refused"
    end: dict[str, Any] = {"finish_reason": _CONTENT_FILTER if refused else last.finish_reason}
    if policy and policy.rectification.trace and last.trace:
        end["guardrails"] = {"rectification": _trace(last.trace)}
    return end


def _trace(trace: Trace) -> dict[str, Any]:
    return {
        "steps": trace.steps,
        "changed": trace.changed[:_MAX_POSITIONS],
        "mass_moved": round(trace.mass_moved, 4),
        "dead_ends": trace.dead_ends,
        "rollbacks": trace.rollbacks,
    }


def _chunk(
    envelope: dict[str, Any],
    index: int,
    delta: dict[str, str],
    **end: Any,
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **end}
    return {**envelope, "choices": [choice]}


def _usage(request: GenerationRequest, completion_tokens: int) -> dict[str, int]:
    prompt_tokens = len(request.prompt_ids)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
