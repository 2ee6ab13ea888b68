"""The unmodified `openai` client against the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import BaseModel

from tests.e2e.guards import PHRASE, Guard
from tests.fake_upstream import FakeUpstream, delta, finish, streamed, usage, whole

pytestmark = pytest.mark.e2e

OPTIONS: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 30}
HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello there."}]
UNSAFE: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": f"About {PHRASE}."}]


class Colour(BaseModel):
    name: str


@pytest.fixture
def openai_client(guard: Guard, upstream: FakeUpstream) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guard.url}/v1", **OPTIONS) as client:
        yield client


@pytest.fixture
async def async_client(guard: Guard, upstream: FakeUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{guard.url}/v1", **OPTIONS) as client:
        yield client


def test_moderation_of_a_string(openai_client: openai.OpenAI) -> None:
    reply = openai_client.moderations.create(input=f"About {PHRASE}.", model="omni")

    assert reply.model.startswith("default@")
    (result,) = reply.results
    assert result.flagged
    assert result.categories.to_dict()["blocklist"] is True
    assert result.categories.violence is False
    assert result.category_scores.to_dict()["blocklist"] == 1.0


def test_moderation_of_a_list(openai_client: openai.OpenAI) -> None:
    reply = openai_client.moderations.create(input=["What a lovely day", PHRASE, "Hello"])

    assert [result.flagged for result in reply.results] == [False, True, False]


def test_moderation_of_parts_says_that_it_cannot_see_the_image(
    openai_client: openai.OpenAI,
) -> None:
    reply = openai_client.moderations.create(
        input=[
            {"type": "text", "text": f"This is {PHRASE}."},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        ]
    )

    (result,) = reply.results
    assert result.flagged
    assert result.to_dict()["coverage"]["reasons"] == ["media"]
    assert result.category_applied_input_types.to_dict()["blocklist"] == ["text"]


async def test_moderation_with_the_async_client(async_client: openai.AsyncOpenAI) -> None:
    reply = await async_client.moderations.create(input=[PHRASE, "Hello"])

    assert [result.flagged for result in reply.results] == [True, False]


def test_the_list_of_models_is_that_of_the_upstream(
    openai_client: openai.OpenAI, upstream: FakeUpstream
) -> None:
    listed = {"id": "fake-1", "object": "model", "created": 7, "owned_by": "tests"}
    upstream.answer(whole(object="list", data=[listed]))

    assert [model.id for model in openai_client.models.list()] == ["fake-1"]


def test_a_chat(openai_client: openai.OpenAI, upstream: FakeUpstream) -> None:
    reply = openai_client.chat.completions.create(model="fake-1", messages=HELLO, temperature=0.5)

    assert reply.choices[0].message.content == "Good day to you."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3
    assert upstream.requests[0].json == {"model": "fake-1", "messages": HELLO, "temperature": 0.5}
    assert upstream.requests[0].headers["authorization"] == "Bearer none"


def test_a_streamed_chat(openai_client: openai.OpenAI, upstream: FakeUpstream) -> None:
    pieces = ["Good ", "day ", "to you."]
    chunks = [delta(role="assistant"), *(delta(content=piece) for piece in pieces)]
    upstream.answer(streamed([*chunks, finish(), usage()]))

    seen = list(
        openai_client.chat.completions.create(
            model="fake-1", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )

    texts = [c.choices[0].delta.content or "" for c in seen if c.choices]
    assert "".join(texts) == "Good day to you."
    assert [c.choices[0].finish_reason for c in seen if c.choices][-1] == "stop"
    assert seen[-1].usage is not None
    assert seen[-1].usage.completion_tokens == 3


async def test_a_streamed_chat_with_the_async_client(
    async_client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(streamed([delta(content="Good day."), finish()]))

    stream = await async_client.chat.completions.create(model="fake-1", messages=HELLO, stream=True)
    texts = [c.choices[0].delta.content or "" async for c in stream if c.choices]

    assert "".join(texts) == "Good day."


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_question_is_a_readable_400(
    openai_client: openai.OpenAI, upstream: FakeUpstream, *, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(model="fake-1", messages=UNSAFE, stream=stream)

    error = caught.value
    assert error.code == "content_filter"
    assert error.type == "invalid_request_error"
    assert error.param == "messages[0].content"
    assert isinstance(error.body, dict)
    found = error.body["innererror"]["content_filter_result"]
    assert found["blocklist"] == {"filtered": True, "severity": "high"}
    assert PHRASE not in str(error)
    assert not upstream.requests


def test_a_policy_may_refuse_politely(guard: Guard, upstream: FakeUpstream) -> None:
    with openai.OpenAI(base_url=f"{guard.url}/p/polite/v1", **OPTIONS) as client:
        reply = client.chat.completions.create(model="fake-1", messages=UNSAFE)

    assert reply.choices[0].finish_reason == "content_filter"
    assert reply.choices[0].message.refusal == "I can't help with that."
    assert not upstream.requests


def test_a_blocked_answer(openai_client: openai.OpenAI, upstream: FakeUpstream) -> None:
    upstream.answer(whole({"content": "Good day."}, {"content": f"It is {PHRASE}."}))

    reply = openai_client.chat.completions.create(model="fake-1", messages=HELLO, n=2)

    first, second = reply.choices
    assert (first.finish_reason, first.message.content) == ("stop", "Good day.")
    assert (second.finish_reason, second.message.content) == ("content_filter", None)
    assert second.message.refusal == "I can't help with that."
    assert reply.usage is not None


def test_a_blocked_streamed_answer_ends_cleanly_with_usage(
    openai_client: openai.OpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(streamed([delta(content=f"It is {PHRASE}."), finish(), usage()]))

    seen = list(
        openai_client.chat.completions.create(
            model="fake-1", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )

    assert not any(c.choices[0].delta.content for c in seen if c.choices)
    assert [c.choices[0].finish_reason for c in seen if c.choices][-1] == "content_filter"
    assert seen[-1].usage is not None


def test_the_streaming_helper_raises_its_own_exception(
    openai_client: openai.OpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(streamed([delta(content=f"It is {PHRASE}."), finish()]))

    with (
        openai_client.chat.completions.stream(
            model="fake-1", messages=HELLO, response_format=Colour
        ) as stream,
        pytest.raises(openai.ContentFilterFinishReasonError),
    ):
        stream.until_done()


def test_parse_raises_its_own_exception(
    openai_client: openai.OpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(whole({"content": f'{{"name": "{PHRASE}"}}'}))

    with pytest.raises(openai.ContentFilterFinishReasonError):
        openai_client.chat.completions.parse(model="fake-1", messages=HELLO, response_format=Colour)


def test_parse_reads_an_answer_that_passes(
    openai_client: openai.OpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(whole({"content": '{"name": "green"}'}))

    reply = openai_client.chat.completions.parse(
        model="fake-1", messages=HELLO, response_format=Colour
    )

    assert reply.choices[0].message.parsed == Colour(name="green")


@pytest.mark.parametrize(
    "way",
    [
        {"extra_headers": {"X-Guard-Policy": "strict"}},
        {"extra_body": {"guardrails": "strict"}},
        {"extra_body": {"guardrails": {"policy": "strict"}}},
        {"extra_body": {"guardrails": ["strict"]}},
    ],
    ids=["header", "name", "object", "list"],
)
def test_a_policy_is_chosen(
    openai_client: openai.OpenAI, upstream: FakeUpstream, way: dict[str, Any]
) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(
        model="fake-1", messages=HELLO, **way
    )

    assert raw.headers["x-guard-policy"].startswith("strict ")
    assert raw.headers["x-guard-verdict"] == "allow"
    assert "guardrails" not in upstream.requests[0].json


def test_a_policy_in_the_base_url_comes_first(guard: Guard, upstream: FakeUpstream) -> None:
    with openai.OpenAI(base_url=f"{guard.url}/p/strict/v1", **OPTIONS) as client:
        chat = client.chat.completions.with_raw_response.create(
            model="fake-1", messages=HELLO, extra_headers={"X-Guard-Policy": "monitor"}
        )
        moderation = client.moderations.create(input="Hello")

    assert chat.headers["x-guard-policy"].startswith("strict ")
    assert moderation.model.startswith("strict@")


def test_an_unknown_policy_is_an_error(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(
            model="fake-1", messages=HELLO, extra_body={"guardrails": "lenient"}
        )

    assert caught.value.code == "unknown_policy"


def test_a_wish_may_tighten_but_not_loosen(openai_client: openai.OpenAI) -> None:
    def ask(threshold: float) -> Any:
        wish = {"thresholds": {"blocklist": threshold}}
        return openai_client.chat.completions.create(
            model="fake-1", messages=HELLO, extra_body={"guardrails": wish}
        )

    assert ask(0.1).choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(0.99)
    assert caught.value.code == "policy_loosened"


def test_moderation_annotates_the_chat(
    openai_client: openai.OpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(whole({"content": f"It is {PHRASE}."}))

    reply = openai_client.chat.completions.create(
        model="fake-1",
        messages=HELLO,
        extra_headers={"X-Guard-Policy": "monitor"},
        extra_body={"moderation": {"model": "omni"}},
    )

    assert reply.choices[0].message.content == f"It is {PHRASE}."
    moderation = reply.to_dict()["moderation"]
    assert isinstance(moderation, dict)
    assert moderation["input"]["results"][0]["flagged"] is False
    assert moderation["output"]["results"][0]["flagged"] is True


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_the_upstream_s_errors_keep_their_status(
    openai_client: openai.OpenAI,
    upstream: FakeUpstream,
    status: int,
    kind: type[openai.APIStatusError],
) -> None:
    answer = whole(error={"message": "upstream says no", "code": "its_own", "type": "its_type"})
    upstream.answer(type(answer)(answer.pieces, status=status, headers={"retry-after": "7"}))

    with pytest.raises(kind, match="upstream says no") as caught:
        openai_client.chat.completions.create(model="fake-1", messages=HELLO, stream=True)

    assert caught.value.code == "its_own"
    assert caught.value.response.headers["retry-after"] == "7"
