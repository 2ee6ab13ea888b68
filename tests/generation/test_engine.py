from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer
from torch import Tensor

from app.domain.errors import (
    ConfigurationError,
    ContextLengthExceeded,
    NotReady,
    Overloaded,
    RequestError,
    UpstreamError,
)
from app.generation.engine import Engine, EngineLimits, GenerationStream
from app.generation.llama import Llama
from app.generation.request import GenerationRequest, Rectification
from app.metrics import Metrics
from app.rectification.steering import Control
from tests.rectification.tiny_critic import tiny_critic

PROMPT = tuple(range(40, 60))
LIMITS = EngineLimits(max_running=2, max_waiting=1, context_tokens=128)


class GatedLlama(Llama):
    """Stops before each forward pass while the gate is closed; breaks in it if told to."""

    def __init__(self, model: Llama) -> None:
        self.__dict__.update(model.__dict__)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: BaseException | None = None
        self.rows: list[int] = []

    def forward(self, token_ids: Tensor, *rest: object) -> Tensor:
        self.entered.set()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.rows.append(len(token_ids))
        return super().forward(token_ids, *rest)


@pytest.fixture
def model(tiny: Llama) -> GatedLlama:
    return GatedLlama(tiny)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
async def engine(
    model: GatedLlama, tiny_tokenizer: Tokenizer, metrics: Metrics
) -> AsyncIterator[Engine]:
    engine = Engine(model, tiny_tokenizer, (), LIMITS, metrics)
    engine.start()
    yield engine
    model.gate.set()
    await engine.close()


async def read(stream: GenerationStream) -> str:
    return "".join([delta.text async for delta in stream])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the engine's thread sets no event
            await asyncio.sleep(0.001)


async def test_requests_at_once_are_answered_as_if_alone(engine: Engine) -> None:
    prompts = [PROMPT, PROMPT[3:], PROMPT[5:9]]
    requests = [GenerationRequest(prompt, 20) for prompt in prompts]
    alone = [await read(engine.submit(request)) for request in requests]

    together = await asyncio.gather(*(read(engine.submit(request)) for request in requests))

    assert together == alone
    assert all(alone)


async def test_running_requests_share_a_step(engine: Engine, model: GatedLlama) -> None:
    model.gate.clear()
    streams = [engine.submit(GenerationRequest(PROMPT, 20)) for _ in range(2)]
    model.gate.set()

    await asyncio.gather(*map(read, streams))

    assert 2 in model.rows


async def test_the_first_delta_comes_before_the_last_token(
    engine: Engine, model: GatedLlama
) -> None:
    stream = engine.submit(GenerationRequest(PROMPT, 100))
    await anext(stream)

    assert len(model.rows) < 100
    stream.close()


async def test_beyond_the_bound_a_request_is_refused_at_once(
    engine: Engine, model: GatedLlama, metrics: Metrics
) -> None:
    model.gate.clear()
    admitted = [engine.submit(GenerationRequest(PROMPT, 5)) for _ in range(3)]

    with pytest.raises(Overloaded) as refusal:
        engine.submit(GenerationRequest(PROMPT, 5))

    assert refusal.value.retry_after > 0
    refusals = metrics.registry.get_sample_value(
        "guardrail_overloaded_total", {"resource": "generation"}
    )
    assert refusals == 1
    model.gate.set()
    assert all(await asyncio.gather(*map(read, admitted)))
    assert await read(engine.submit(GenerationRequest(PROMPT, 5)))


async def test_each_choice_takes_a_place(engine: Engine, model: GatedLlama) -> None:
    model.gate.clear()
    engine.submit(GenerationRequest(PROMPT, 5, choices=2))

    with pytest.raises(Overloaded):
        engine.submit(GenerationRequest(PROMPT, 5, choices=2))


async def test_closing_a_running_stream_frees_its_place(engine: Engine) -> None:
    streams = [engine.submit(GenerationRequest(PROMPT, 100)) for _ in range(3)]
    await anext(streams[0])

    streams[0].close()
    streams[0].close()

    assert engine.open_requests == 2
    assert await read(streams[0]) == ""
    await asyncio.gather(*map(read, streams[1:]))  # the third got the freed row
    assert engine.open_requests == 0


async def test_closing_a_waiting_stream_frees_its_place(engine: Engine, model: GatedLlama) -> None:
    model.gate.clear()
    streams = [engine.submit(GenerationRequest(PROMPT, 5)) for _ in range(3)]

    streams[2].close()

    engine.submit(GenerationRequest(PROMPT, 5))
    assert engine.open_requests == 3


async def test_after_a_cancel_the_model_rests(engine: Engine, model: GatedLlama) -> None:
    stream = engine.submit(GenerationRequest(PROMPT, 100))
    await anext(stream)
    stream.close()
    await until(lambda: not engine._batch.busy)

    assert len(model.rows) < 100


async def test_a_failed_request_is_answered_and_the_next_one_works(
    engine: Engine, model: GatedLlama
) -> None:
    model.error = RuntimeError("broken")
    with pytest.raises(UpstreamError):
        await read(engine.submit(GenerationRequest(PROMPT, 5)))

    model.error = None
    assert await read(engine.submit(GenerationRequest(PROMPT, 5)))
    assert engine.healthy


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_if_the_thread_dies_everybody_is_answered(engine: Engine, model: GatedLlama) -> None:
    model.gate.clear()
    streams = [engine.submit(GenerationRequest(PROMPT, 5)) for _ in range(3)]
    model.error = Uncatchable()
    model.gate.set()

    answers = await asyncio.gather(*map(read, streams), return_exceptions=True)

    assert all(isinstance(answer, NotReady) for answer in answers)
    assert not engine.healthy
    with pytest.raises(NotReady):
        engine.submit(GenerationRequest(PROMPT, 5))


class Uncatchable(BaseException):
    """What no loop catches."""


async def test_closing_answers_everybody_and_ends_the_thread(
    engine: Engine, model: GatedLlama
) -> None:
    model.gate.clear()
    streams = [engine.submit(GenerationRequest(PROMPT, 5)) for _ in range(3)]
    model.entered.wait()
    closing = asyncio.create_task(engine.close())
    await until(lambda: not engine.healthy)
    model.gate.set()

    answers = await asyncio.gather(*map(read, streams), return_exceptions=True)
    await closing

    assert all(isinstance(answer, NotReady) for answer in answers)
    assert not engine._thread.is_alive()
    assert engine.open_requests == 0


async def test_an_engine_that_was_not_started_is_not_ready(
    model: GatedLlama, tiny_tokenizer: Tokenizer, metrics: Metrics
) -> None:
    engine = Engine(model, tiny_tokenizer, (), LIMITS, metrics)

    assert not engine.healthy
    with pytest.raises(NotReady):
        engine.submit(GenerationRequest(PROMPT, 5))
    await engine.close()


async def test_a_request_longer_than_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextLengthExceeded, match="100 tokens") as refusal:
        engine.submit(GenerationRequest(PROMPT * 5, 29))

    assert refusal.value.param == "messages"
    assert await read(engine.submit(GenerationRequest(PROMPT * 5, 28)))


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest((), 5),
        GenerationRequest(PROMPT, 0),
        GenerationRequest(PROMPT, 5, choices=0),
        GenerationRequest(PROMPT, 5, choices=3),
    ],
)
async def test_a_request_that_can_never_be_served_is_refused(
    engine: Engine, request_: GenerationRequest
) -> None:
    with pytest.raises(RequestError):
        engine.submit(request_)


def test_a_context_beyond_the_model_is_refused(
    tiny_folder: Path, tiny_tokenizer: Tokenizer, metrics: Metrics
) -> None:
    with pytest.raises(ValueError, match="context_tokens"):
        Engine.load(tiny_folder, tiny_tokenizer, EngineLimits(context_tokens=100_000), metrics)


async def test_a_listener_whose_event_loop_is_gone_is_dropped(
    engine: Engine, model: GatedLlama
) -> None:
    def submit_and_leave() -> None:
        async def submit() -> None:
            engine.submit(GenerationRequest(PROMPT, 100))

        asyncio.run(submit())

    model.gate.clear()
    await asyncio.to_thread(submit_and_leave)
    model.gate.set()
    await until(lambda: engine.open_requests == 0)
    await until(lambda: not engine._batch.busy)

    assert len(model.rows) < 100


async def test_a_reading_gives_what_each_layer_leaves(engine: Engine, tiny: Llama) -> None:
    states = await engine.read(PROMPT)

    assert states.shape == (tiny.shape.layers, tiny.shape.hidden)
    assert np.isfinite(states).all()
    assert engine.open_requests == 0
    assert (states == await engine.read(PROMPT)).all()


async def test_a_reading_does_not_wait_for_a_row(engine: Engine) -> None:
    streams = [engine.submit(GenerationRequest(PROMPT, 100)) for _ in range(3)]
    await anext(streams[0])

    assert (await engine.read(PROMPT[3:])).any()

    assert engine.open_requests == 3
    for stream in streams:
        stream.close()


async def test_readings_and_chats_take_turns(engine: Engine, model: GatedLlama) -> None:
    model.gate.clear()
    order = []

    async def note(name: str, work: Awaitable[object]) -> None:
        await work
        order.append(name)

    first = asyncio.create_task(engine.read(PROMPT))
    await asyncio.to_thread(model.entered.wait)
    reading = asyncio.create_task(note("reading", engine.read(PROMPT[1:])))
    await asyncio.sleep(0)
    chat = asyncio.create_task(note("chat", read(engine.submit(GenerationRequest(PROMPT[9:], 1)))))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, reading, chat)

    assert order == ["chat", "reading"]


async def test_too_many_readings_are_refused_and_chats_are_not(
    engine: Engine, model: GatedLlama, metrics: Metrics
) -> None:
    model.gate.clear()
    readings = [asyncio.create_task(engine.read(PROMPT[start:])) for start in range(2)]
    await until(lambda: engine.open_requests == 2)

    with pytest.raises(Overloaded) as refusal:
        await engine.read(PROMPT)
    stream = engine.submit(GenerationRequest(PROMPT, 1))

    assert refusal.value.retry_after > 0
    model.gate.set()
    assert await read(stream) is not None
    await asyncio.gather(*readings)


async def test_a_cancelled_reading_frees_its_place(engine: Engine, model: GatedLlama) -> None:
    model.gate.clear()
    tasks = [asyncio.create_task(engine.read(PROMPT[start:])) for start in range(2)]
    await until(lambda: engine.open_requests == 2)

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert engine.open_requests == 0
    model.gate.set()
    assert (await engine.read(PROMPT)).any()


async def test_a_failed_reading_is_answered(engine: Engine, model: GatedLlama) -> None:
    model.error = RuntimeError("broken")
    with pytest.raises(UpstreamError):
        await engine.read(PROMPT)


@pytest.mark.parametrize("length", [0, 129])
async def test_a_reading_must_fit(engine: Engine, length: int) -> None:
    with pytest.raises(RequestError):
        await engine.read([5] * length)


async def test_closing_answers_a_reading(engine: Engine, model: GatedLlama) -> None:
    model.gate.clear()
    reading = asyncio.create_task(engine.read(PROMPT))
    await asyncio.to_thread(model.entered.wait)
    closing = asyncio.create_task(engine.close())
    await until(lambda: not engine.healthy)
    waiting = engine.read(PROMPT)
    with pytest.raises(NotReady):
        await waiting
    model.gate.set()

    await asyncio.gather(reading, closing, return_exceptions=True)

    assert reading.done()
    assert not engine._thread.is_alive()


RECTIFIED = GenerationRequest(PROMPT, 20, rectification=Rectification(Control("cap", 0.3)))


async def test_without_a_critic_a_wish_for_one_is_refused(engine: Engine) -> None:
    assert not engine.rectifies
    with pytest.raises(RequestError) as refusal:
        engine.submit(RECTIFIED)

    assert refusal.value.param == "guardrails.rectification"
    assert engine.open_requests == 0


async def test_with_a_critic_requests_are_rectified_that_ask_for_it(
    tiny: Llama, tiny_tokenizer: Tokenizer, metrics: Metrics
) -> None:
    engine = Engine(
        tiny, tiny_tokenizer, (), LIMITS, metrics, critic=tiny_critic(tiny.shape.vocabulary)
    )
    engine.start()
    assert engine.rectifies
    streams = [engine.submit(one) for one in (RECTIFIED, GenerationRequest(PROMPT, 20))]

    deltas, plain = [[delta async for delta in stream] for stream in streams]

    assert deltas[-1].trace is not None
    assert deltas[-1].trace.steps == 20
    assert plain[-1].trace is None
    await engine.close()


def test_a_critic_with_another_vocabulary_is_refused(
    tiny: Llama, tiny_tokenizer: Tokenizer, metrics: Metrics
) -> None:
    with pytest.raises(ConfigurationError, match=r"another vocabulary.*sluiceway train critic"):
        Engine(tiny, tiny_tokenizer, (), LIMITS, metrics, critic=tiny_critic(48))
