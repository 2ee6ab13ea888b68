from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.domain.errors import DetectorError, NotReady, Overloaded
from app.inference.batcher import Batcher
from app.metrics import Metrics

POISON = -1


class EchoPredictor:
    """Answers each window with its first token; fails on poison; can be held."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.drop = 0

    def predict(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append([list(ids) for ids in batch])
        self.entered.set()
        assert self.gate.wait(10)
        if any(ids and ids[0] == POISON for ids in batch):
            raise RuntimeError("poison")
        rows = [[float(ids[0]) if ids else 0.0] for ids in batch]
        return np.array(rows[: len(rows) - self.drop], dtype=np.float32).reshape(-1, 1)


@asynccontextmanager
async def running(
    predictor: EchoPredictor, *, max_batch_tokens: int = 64, max_queue_tokens: int = 1_000
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        predictor,
        name="prompt_detector",
        metrics=Metrics(),
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        predictor.gate.set()
        await batcher.close()


async def held(batcher: Batcher, predictor: EchoPredictor) -> asyncio.Task[list[NDArray]]:
    """A first request that occupies the model until the gate opens."""
    predictor.gate.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await asyncio.to_thread(predictor.entered.wait, 10)
    return first


async def test_rows_come_back_in_order() -> None:
    async with running(EchoPredictor()) as batcher:
        rows = await batcher.submit([[n] * (1 + n % 7) for n in range(1, 50)])
    assert [row[0] for row in rows] == list(range(1, 50))


async def test_a_lone_request_goes_at_once() -> None:
    predictor = EchoPredictor()
    async with running(predictor) as batcher:
        await batcher.submit([[5]])
    assert predictor.batches == [[[5]]]


async def test_what_arrives_during_a_batch_becomes_one_batch() -> None:
    predictor = EchoPredictor()
    async with running(predictor) as batcher:
        first = await held(batcher, predictor)
        others = [asyncio.create_task(batcher.submit([[n, n]])) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        predictor.gate.set()
        await asyncio.gather(first, *others)
    assert predictor.batches == [[[0]], [[1, 1], [2, 2], [3, 3]]]


async def test_the_budget_counts_padding() -> None:
    predictor = EchoPredictor()
    async with running(predictor, max_batch_tokens=20) as batcher:
        first = await held(batcher, predictor)
        task = asyncio.create_task(batcher.submit([[1] * n for n in (8, 8, 9, 10, 7)]))
        await asyncio.sleep(0)
        predictor.gate.set()
        await asyncio.gather(first, task)
    for batch in predictor.batches:
        assert max(map(len, batch)) * len(batch) <= 20


async def test_a_batch_holds_windows_of_similar_length() -> None:
    predictor = EchoPredictor()
    async with running(predictor, max_batch_tokens=640) as batcher:
        first = await held(batcher, predictor)
        task = asyncio.create_task(batcher.submit([[1] * n for n in (4, 40, 4, 40, 5, 41)]))
        await asyncio.sleep(0)
        predictor.gate.set()
        await asyncio.gather(first, task)
    assert [sorted(map(len, batch)) for batch in predictor.batches[1:]] == [[4, 4, 5], [40, 40, 41]]


async def test_a_window_over_the_budget_still_runs_alone() -> None:
    predictor = EchoPredictor()
    async with running(predictor, max_batch_tokens=4) as batcher:
        rows = await batcher.submit([[7] * 9])
    assert rows[0][0] == 7


async def test_cancel_one_of_three() -> None:
    predictor = EchoPredictor()
    async with running(predictor) as batcher:
        first = await held(batcher, predictor)
        tasks = [asyncio.create_task(batcher.submit([[n]])) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        predictor.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    assert results[1][0][0] == 1
    assert results[3][0][0] == 3
    assert predictor.batches[1] == [[1], [3]]


async def test_cancel_while_the_batch_runs_hurts_nobody() -> None:
    predictor = EchoPredictor()
    async with running(predictor) as batcher:
        first = await held(batcher, predictor)
        first.cancel()
        second = asyncio.create_task(batcher.submit([[2]]))
        await asyncio.sleep(0)
        predictor.gate.set()
        assert (await second)[0][0] == 2


async def test_a_poisoned_batch_answers_everybody_and_the_loop_lives() -> None:
    predictor = EchoPredictor()
    async with running(predictor) as batcher:
        first = await held(batcher, predictor)
        tasks = [asyncio.create_task(batcher.submit([[n]])) for n in (1, POISON, 3)]
        await asyncio.sleep(0)
        predictor.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert all(isinstance(result, DetectorError) for result in results[1:])
        assert "poison" not in str(results[2])
        assert (await batcher.submit([[9]]))[0][0] == 9
        assert batcher.healthy


async def test_overload_is_refused_at_once_and_queues_nothing() -> None:
    predictor = EchoPredictor()
    async with running(predictor, max_batch_tokens=4, max_queue_tokens=5) as batcher:
        first = await held(batcher, predictor)
        waiting = asyncio.create_task(batcher.submit([[1, 1, 1, 1]]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit([[2], [3]])
        predictor.gate.set()
        await asyncio.gather(first, waiting)
    assert [2] not in [ids for batch in predictor.batches for ids in batch]


async def test_a_wrong_number_of_results_is_an_error() -> None:
    predictor = EchoPredictor()
    predictor.drop = 1
    async with running(predictor) as batcher:
        with pytest.raises(DetectorError):
            await batcher.submit([[1], [2]])
        predictor.drop = 0
        assert (await batcher.submit([[1]]))[0][0] == 1


async def test_no_number_is_an_error_for_its_owner_only() -> None:
    class NanPredictor(EchoPredictor):
        def predict(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
            rows = super().predict(batch)
            rows[rows == 2] = np.nan
            return rows

    predictor = NanPredictor()
    async with running(predictor) as batcher:
        first = await held(batcher, predictor)
        tasks = [asyncio.create_task(batcher.submit([[n]])) for n in (1, 2)]
        await asyncio.sleep(0)
        predictor.gate.set()
        _, good, bad = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert good[0][0] == 1
    assert isinstance(bad, DetectorError)


async def test_shutdown_answers_everybody() -> None:
    predictor = EchoPredictor()
    async with running(predictor) as batcher:
        first = await held(batcher, predictor)
        second = asyncio.create_task(batcher.submit([[2]]))
        await asyncio.sleep(0)
        await batcher.close()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert all(isinstance(result, NotReady) for result in results)
        assert not batcher.healthy
        with pytest.raises(NotReady):
            await batcher.submit([[3]])


async def test_a_stuck_batch_makes_it_unhealthy() -> None:
    predictor = EchoPredictor()
    batcher = Batcher(
        predictor,
        name="prompt_detector",
        metrics=Metrics(),
        max_batch_tokens=8,
        max_queue_tokens=8,
        stall_s=0.0,
    )
    batcher.start()
    assert batcher.healthy
    first = await held(batcher, predictor)
    assert not batcher.healthy
    predictor.gate.set()
    await first
    assert batcher.healthy
    await batcher.close()


def test_a_budget_over_the_queue_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batch_tokens"):
        Batcher(
            EchoPredictor(),
            name="prompt_detector",
            metrics=Metrics(),
            max_batch_tokens=9,
            max_queue_tokens=8,
        )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 30), min_size=1, max_size=4),  # lengths of the windows
            st.sampled_from(["stay", "leave", "poison"]),
            st.integers(0, 3),  # how many turns of the loop to arrive later
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_caller_gets_exactly_one_answer(
    callers: list[tuple[list[int], str, int]],
) -> None:
    async def scenario() -> None:
        async with running(EchoPredictor(), max_queue_tokens=100_000) as batcher:
            tasks: list[asyncio.Task[list[NDArray]]] = []
            for number, (lengths, kind, later) in enumerate(callers, start=1):
                for _ in range(later):
                    await asyncio.sleep(0)
                value = POISON if kind == "poison" else number
                tasks.append(asyncio.create_task(batcher.submit([[value] * n for n in lengths])))
                await asyncio.sleep(0)
                if kind == "leave":
                    tasks[-1].cancel()
            async with asyncio.timeout(10):
                results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, ((lengths, kind, _), result) in enumerate(
            zip(callers, results, strict=True), start=1
        ):
            if kind == "poison":
                assert isinstance(result, DetectorError)
            elif isinstance(result, list):
                assert [row[0] for row in result] == [number] * len(lengths)
            else:
                assert isinstance(result, DetectorError | asyncio.CancelledError)

    asyncio.run(scenario())
