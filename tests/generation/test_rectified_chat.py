"""A rectified chat from payload to reply, with a real engine and a tiny critic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer

from app.domain.policy import (
    Action,
    Policy,
    RectificationMode,
    RectificationPolicy,
    Rule,
    StagePolicy,
)
from app.generation.chat import EmbeddedChat
from app.generation.chatml import ChatMl
from app.generation.engine import Engine, EngineLimits
from app.generation.llama import Llama
from app.metrics import Metrics
from tests.rectification.tiny_critic import tiny_critic

PAYLOAD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "the cat sat on the mat"}],
    "max_tokens": 24,
    "n": 2,
    "seed": 4,
}
STAGE = StagePolicy((), Rule(0.5, Action.BLOCK))


def policy(mode: str, **rules: Any) -> Policy:
    rectification = RectificationPolicy(RectificationMode(mode), gate=0.0, trace=True, **rules)
    return Policy("default", "0", STAGE, STAGE, rectification=rectification)


@pytest.fixture
async def chat(tiny: Llama, tiny_tokenizer: Tokenizer) -> AsyncIterator[EmbeddedChat]:
    engine = Engine(
        tiny,
        tiny_tokenizer,
        (),
        EngineLimits(max_running=4, context_tokens=128),
        Metrics(CollectorRegistry()),
        critic=tiny_critic(tiny.shape.vocabulary),
    )
    engine.start()
    yield EmbeddedChat(engine, ChatMl(tiny_tokenizer), "tiny")
    await engine.close()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("mode", ["cap", "tilt", "tilt_cap"])
async def test_whole_and_streamed_are_the_same(
    chat: EmbeddedChat, mode: str, temperature: int
) -> None:
    rules = policy(mode, epsilon=0.2, beta=5.0, top_k=0)
    payload = PAYLOAD | {"temperature": temperature}

    whole = await chat.complete(payload, rules)
    chunks = [chunk async for chunk in await chat.open_stream(payload, rules)]

    pieces = [chunk["choices"][0] for chunk in chunks]
    for choice in whole["choices"]:
        mine = [piece for piece in pieces if piece["index"] == choice["index"]]
        text = "".join(piece["delta"].get("content", "") for piece in mine)
        assert text == choice["message"]["content"] != ""
        assert mine[-1]["guardrails"] == choice["guardrails"]
        assert choice["guardrails"]["rectification"]["steps"] == 24
    assert (await chat.complete(payload, None))["choices"][0]["message"] != (
        whole["choices"][0]["message"]
    )


async def test_where_no_token_is_safe_the_answer_is_the_refusal_of_the_policy(
    chat: EmbeddedChat,
) -> None:
    answer = await chat.complete(PAYLOAD, policy("cap", epsilon=1.0))

    for choice in answer["choices"]:
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["content"] is None
        assert choice["message"]["refusal"] == "I can't help with that."
        assert choice["guardrails"]["rectification"]["dead_ends"] == 1
    assert answer["usage"]["completion_tokens"] == 0
