"""Streams over real sockets: what leaves, what is cancelled, and when."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.e2e.guards import PHRASE, Guard
from tests.fake_upstream import (
    Answer,
    FakeUpstream,
    Received,
    Step,
    delta,
    event,
    finish,
    streamed,
    usage,
)
from tests.proxy.chats import Transcript

pytestmark = pytest.mark.e2e

RELEASED = "guardrail_stream_released_before_verdict_chars_total"
WORDS = ["naïve", "café", "tiny", "house", "猫", "on", "the", "hill", "and", "one", "😀", "more"]
STREAMS = 200


def words(count: int) -> str:
    return "".join(f"{WORDS[n % len(WORDS)]} " for n in range(count))


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def deltas(text: str, size: int, field: str = "content") -> list[dict[str, Any]]:
    return [delta(role="assistant", content=""), *(delta(**{field: p}) for p in cut(text, size))]


def chat(content: str = "Tell me a story.", **more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "messages": [{"role": "user", "content": content}], **more}


def read(client: httpx2.Client, policy: str = "quick", **more: Any) -> Transcript:
    asked = chat(stream=True, stream_options={"include_usage": True}, **more)
    reply = client.post(f"/p/{policy}/v1/chat/completions", json=asked)
    assert reply.status_code == 200, reply.text
    return Transcript(reply.content)


@contextmanager
def opened(client: httpx2.Client, policy: str = "quick") -> Iterator[Iterator[str]]:
    """The lines of a stream, as they come."""
    url = f"/p/{policy}/v1/chat/completions"
    with client.stream("POST", url, json=chat(stream=True)) as reply:
        assert reply.status_code == 200
        yield (line for line in reply.iter_lines() if line)


def released(guard: Guard) -> float:
    return guard.counted(RELEASED, endpoint="chat_completions", detector="keywords")


@pytest.mark.parametrize("before", [0, 1, 7, 30, 120])
@pytest.mark.parametrize("size", [1, 4, 50, 10_000])
def test_nothing_of_a_forbidden_phrase_leaves(
    guard: Guard, client: httpx2.Client, upstream: FakeUpstream, before: int, size: int
) -> None:
    text = words(before) + PHRASE.title() + " " + words(60)
    upstream.answer(streamed(deltas(text, size), Step.STALL, done=False))
    counted = released(guard)

    seen = read(client)

    assert seen.finishes == {0: "content_filter"}
    assert seen.done
    assert seen.usage is not None
    assert not seen.errors
    assert words(before).startswith(seen.text())
    assert upstream.client_left.wait(10)
    assert released(guard) == counted


@pytest.mark.parametrize("seed", range(5))
def test_bytes_may_be_split_anywhere(
    client: httpx2.Client, upstream: FakeUpstream, seed: int
) -> None:
    chance = random.Random(seed)
    before = words(chance.randrange(60))
    raw = b"".join(map(event, deltas(before + PHRASE + " " + words(60), chance.randint(1, 9))))
    cuts = sorted(chance.sample(range(1, len(raw)), 80))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    upstream.answer(Answer([*pieces, Step.STALL], content_type="text/event-stream"))

    seen = read(client)

    assert seen.finishes == {0: "content_filter"}
    assert before.startswith(seen.text())
    assert upstream.client_left.wait(10)


@pytest.mark.parametrize("size", [1, 13, 10_000])
def test_a_clean_stream_arrives_as_it_was(
    client: httpx2.Client, upstream: FakeUpstream, size: int
) -> None:
    text = words(80)
    upstream.answer(streamed([*deltas(text, size), finish(), usage()]))

    seen = read(client)

    assert seen.text() == text
    assert seen.finishes == {0: "stop"}
    assert seen.usage == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert seen.done
    assert not upstream.client_left.is_set()


def call(arguments: str) -> dict[str, Any]:
    return {"index": 0, "id": "c1", "function": {"name": "note", "arguments": arguments}}


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(deltas(PHRASE, 2, "reasoning_content"), id="reasoning"),
        pytest.param(deltas(PHRASE, 2, "refusal"), id="refusal"),
        pytest.param(deltas(json.dumps({"a": PHRASE}), 3), id="json"),
        pytest.param(deltas(PHRASE, 2, "a_field_of_tomorrow"), id="unknown field"),
        pytest.param(
            [delta(tool_calls=[call(piece)]) for piece in cut(json.dumps({"to": PHRASE}), 5)],
            id="tool call",
        ),
    ],
)
def test_every_field_is_judged(
    client: httpx2.Client, upstream: FakeUpstream, chunks: list[dict[str, Any]]
) -> None:
    upstream.answer(streamed([*chunks, finish()]))

    seen = read(client)

    assert seen.finishes == {0: "content_filter"}
    assert PHRASE.split()[1] not in seen.raw.decode()
    assert not any(seen.texts.values())


def test_the_second_choice_is_judged_on_its_own(
    client: httpx2.Client, upstream: FakeUpstream
) -> None:
    text = words(50)
    both = [delta(index, content=piece) for piece in cut(text, 7) for index in (0, 1)]
    upstream.answer(streamed([*both, delta(1, content=PHRASE), finish(0), finish(1)]))

    seen = read(client, n=2)

    assert seen.finishes == {0: "stop", 1: "content_filter"}
    assert seen.text(0) == text
    assert text.startswith(seen.text(1))


def test_a_client_that_leaves_stops_the_upstream(
    client: httpx2.Client, upstream: FakeUpstream
) -> None:
    upstream.answer(streamed(deltas(words(80), 5), Step.STALL, done=False))

    with opened(client) as lines:
        next(lines)

    assert upstream.client_left.wait(10)


def test_the_first_event_and_the_first_text_do_not_wait_for_the_end(
    client: httpx2.Client, upstream: FakeUpstream
) -> None:
    text, more = threading.Event(), threading.Event()
    first = event(delta(role="assistant", content=""))
    pieces = [first, text, event(delta(content=words(40))), more, event(finish())]
    upstream.answer(Answer([*pieces, b"data: [DONE]\n\n"], content_type="text/event-stream"))

    with opened(client) as lines:
        assert '"role":"assistant"' in next(lines)
        text.set()
        assert "house" in next(lines)
        more.set()
        rest = list(lines)

    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"stop"' in rest[-2]


def test_comments_flow_while_the_upstream_stalls(
    guard: Guard, client: httpx2.Client, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard.parts.proxy, "_comment_interval_s", 0.02)
    upstream.answer(streamed(deltas("Once upon", 3), Step.STALL, done=False))

    with opened(client) as lines:
        seen = [next(lines) for _ in range(4)]

    assert seen[1:] == [": holding"] * 3
    assert upstream.client_left.wait(10)


def test_text_that_waits_too_long_is_judged_before_its_window_is_full(
    client: httpx2.Client, upstream: FakeUpstream
) -> None:
    upstream.answer(streamed(deltas(words(16), 5), Step.STALL, done=False))

    with opened(client, "eager") as lines:
        next(lines)
        assert '"content":"naïve' in next(lines)

    assert upstream.client_left.wait(10)


@pytest.mark.parametrize("end", [Step.DIE, b"data: {garbage\n\n"], ids=["dies", "garbage"])
def test_an_upstream_that_breaks_ends_in_a_well_formed_error(
    client: httpx2.Client, upstream: FakeUpstream, end: Any
) -> None:
    upstream.answer(streamed(deltas(words(30), 5), end, done=False))

    seen = read(client)

    assert [error["type"] for error in seen.errors] == ["upstream_error"]
    assert not seen.finishes
    assert not seen.done
    assert words(30).startswith(seen.text())


def test_fast_mode_releases_at_once_and_counts_it(
    guard: Guard, client: httpx2.Client, upstream: FakeUpstream
) -> None:
    text = words(60) + PHRASE + " " + words(60)
    upstream.answer(streamed(deltas(text, 5), Step.STALL, done=False))
    counted = released(guard)

    seen = read(client, "fast")

    assert seen.finishes == {0: "content_filter"}
    assert text.startswith(seen.text())
    assert released(guard) - counted == len(seen.text()) > 0
    assert upstream.client_left.wait(10)


def test_secrets_are_redacted_across_deltas(client: httpx2.Client, upstream: FakeUpstream) -> None:
    secret = "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0" * 2
    upstream.answer(streamed([*deltas(f"{words(9)}{secret} {words(9)}", 3), finish()]))

    seen = read(client)

    assert seen.finishes == {0: "stop"}
    assert secret[:12] not in seen.text()
    assert seen.text().startswith(words(9))
    assert seen.text().endswith(words(9))


def echo(received: Received) -> Answer:
    """Streams the question back, a few letters at a time."""
    question = received.json["messages"][-1]["content"]
    return streamed([*deltas(question, 11), finish()])


async def test_many_streams_at_once_never_mix(guard: Guard, upstream: FakeUpstream) -> None:
    upstream.answer(echo)
    limits = httpx2.Limits(max_connections=STREAMS)
    async with httpx2.AsyncClient(base_url=guard.url, timeout=60, limits=limits) as client:

        async def one(number: int) -> tuple[str, Transcript]:
            text = f"tag-{number} " * 25
            url = "/p/quick/v1/chat/completions"
            reply = await client.post(url, json=chat(text, stream=True))
            return text, Transcript(reply.content)

        seen = await asyncio.gather(*(one(number) for number in range(STREAMS)))

    assert len(upstream.requests) == STREAMS
    for text, transcript in seen:
        assert transcript.text() == text
        assert transcript.finishes == {0: "stop"}
