"""Time of a single request to an idle guard, over that of the bare session.

Knows nothing about throughput. One request after the other, on one kept-alive connection.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from statistics import median

from bench.bare import HORIZON, bare_process
from bench.client import Connection, post
from bench.server import guard
from bench.setup import Setup
from bench.summary import Percentiles, Spread
from bench.table import Part, Row
from bench.texts import make_texts


async def measure(setup: Setup) -> Part:
    """Percentiles of both sides, round by round."""
    requests = [post("/moderate", {"input": text}) for text in make_texts(HORIZON)]
    bare: list[Percentiles] = []
    ours: list[Percentiles] = []
    async with bare_process(setup) as (session, _), guard(setup) as server:
        question = {"measure": "latency", "seconds": setup.seconds}
        for _ in range(setup.rounds):
            bare.append(Percentiles.of((await session.ask(question))["milliseconds"]))
            # A new one each round: the guard closes a connection that idles through the other side.
            connection = await Connection.open(server.port)
            await _times(connection, requests, 0.5)
            ours.append(Percentiles.of(await _times(connection, requests, setup.seconds)))
            await connection.close()
    rows = tuple(_row(one.name, ours, bare) for one in fields(Percentiles))
    return Part(rows, {"bare_ms": list(map(asdict, bare)), "guard_ms": list(map(asdict, ours))})


async def _times(connection: Connection, requests: Sequence[bytes], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        (await connection.request(requests[len(times) % len(requests)])).require_ok()
        times.append((time.perf_counter() - begun) * 1_000)
    return times


def _row(name: str, ours: Sequence[Percentiles], bare: Sequence[Percentiles]) -> Row:
    mine = [getattr(one, name) for one in ours]
    theirs = [getattr(one, name) for one in bare]
    return Row(
        what=f"single request, idle server, {name}",
        ours=median(mine),
        theirs=median(theirs),
        unit="ms",
        result=Spread.of(a / b for a, b in zip(mine, theirs, strict=True)),
    )
