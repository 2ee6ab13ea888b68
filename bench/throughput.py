"""Texts per second through `POST /moderate`, over those of the bare session.

Knows nothing about latency. The sides take turns; one is idle while the other is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from bench.bare import HORIZON, bare_process
from bench.client import Connection, post
from bench.server import Guard, guard
from bench.setup import Setup
from bench.summary import Spread
from bench.table import Aim, Direction, Part, Row
from bench.texts import make_texts

_LIST: Final = 32


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to send texts: so many in a request, so many requests at a time."""

    what: str
    per_request: int
    at_once: int
    aim: float | None

    def requests(self, texts: Sequence[str]) -> list[bytes]:
        """All texts, as requests."""
        if self.per_request == 1:
            return [post("/moderate", {"input": text}) for text in texts]
        lists = (list(texts[i : i + self.per_request]) for i in range(0, len(texts), _LIST))
        return [post("/moderate", {"input": some}) for some in lists]


MODES: Final = (
    Mode("texts/s, lists of 32, one at a time", _LIST, 1, 0.9),
    Mode("texts/s, lists of 32, two at a time", _LIST, 2, None),
    Mode("texts/s, 32 single requests at a time", 1, 32, 0.8),
)


async def measure(setup: Setup) -> Part:
    """Every mode against the bare session, round by round."""
    texts = make_texts(HORIZON)
    modes = [(mode, mode.requests(texts)) for mode in MODES]
    bare: list[float] = []
    ours: dict[Mode, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    async with bare_process(setup) as (session, batch_tokens), guard(setup) as server:
        question = {"measure": "throughput", "seconds": setup.seconds}
        for _ in range(setup.rounds):
            for mode, requests in modes:
                answer = await session.ask(question)
                bare.append(answer["texts"] / answer["seconds"])
                ours[mode].append(await _drive(server, mode, requests, setup.seconds))
    return _part(ours, bare, batch_tokens)


async def _drive(
    server: Guard, mode: Mode, requests: Sequence[bytes], seconds: float
) -> dict[str, Any]:
    """Send requests for so long, as many at a time as the mode says."""
    connections = [await Connection.open(server.port) for _ in range(mode.at_once)]
    before = await server.work()
    source = itertools.cycle(requests)
    begun, client_begun = time.perf_counter(), time.process_time()
    counts = await asyncio.gather(
        *(_send(connection, source, begun + seconds) for connection in connections)
    )
    elapsed, client_s = time.perf_counter() - begun, time.process_time() - client_begun
    work = (await server.work()).since(before)
    for connection in connections:
        await connection.close()
    texts = sum(counts) * mode.per_request
    return {
        "texts_per_s": texts / elapsed,
        "windows_per_text": work.windows / texts,
        "model_busy": work.inference_s / elapsed,
        "client_busy": client_s / elapsed,
        **asdict(work),
    }


async def _send(connection: Connection, source: Iterator[bytes], end: float) -> int:
    sent = 0
    while time.perf_counter() < end:
        (await connection.request(next(source))).require_ok()
        sent += 1
    return sent


def _part(ours: dict[Mode, list[dict[str, Any]]], bare: Sequence[float], batch_tokens: int) -> Part:
    rows = []
    for number, (mode, rounds) in enumerate(ours.items()):
        # Each round of a mode is compared with the bare session right before it.
        beside = bare[number :: len(ours)]
        speeds = [one["texts_per_s"] for one in rounds]
        rows.append(
            Row(
                what=mode.what,
                ours=median(speeds),
                theirs=median(beside),
                unit="texts/s",
                result=Spread.of(a / b for a, b in zip(speeds, beside, strict=True)),
                aim=None if mode.aim is None else Aim(Direction.AT_LEAST, mode.aim),
            )
        )
    details = {
        "bare_batch_tokens": batch_tokens,
        "bare_texts_per_s": bare,
        "modes": {mode.what: rounds for mode, rounds in ours.items()},
    }
    return Part(tuple(rows), details, (_note(ours, batch_tokens),))


def _note(ours: dict[Mode, list[dict[str, Any]]], batch_tokens: int) -> str:
    windows = median(one["windows_per_text"] for rounds in ours.values() for one in rounds)
    busy = ", ".join(
        f"{median(one['model_busy'] for one in rounds):.0%} ({mode.what})"
        for mode, rounds in ours.items()
    )
    return (
        f"The bare session was fastest with {batch_tokens} tokens a batch. The guard judged "
        f"{windows:.2f} windows for each text, as it also reads disguised text; of its time the "
        f"model ran {busy}."
    )
