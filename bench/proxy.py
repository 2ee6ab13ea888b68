"""What the streaming proxy adds: the same fake upstream called through the guard and directly.

Knows nothing about the model behind. With the policy `default` text is held until it was judged, so
the first token waits for the first window: at a fixed pace that wait is the policy's, as fast as
possible it is the guard's own work.
"""

from __future__ import annotations

import bisect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from bench.client import BadReply, Connection, post
from bench.fake_llm import fake_llm
from bench.server import guard
from bench.setup import Setup
from bench.summary import Percentiles, Spread
from bench.table import Part, Row

_PATH: Final = "/v1/chat/completions"
_QUESTION: Final = "What should I pack for a quiet week in the mountains?"
_PACE_MS: Final = 20
_FEWEST_TOKENS: Final = 50
_FAST_TOKENS: Final = 400


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer: when each piece of text came, in milliseconds since the request."""

    arrivals: tuple[float, ...]
    characters: tuple[int, ...]  # how much text had come by then
    total_ms: float

    @property
    def first_ms(self) -> float:
        """Until the first text."""
        return self.arrivals[0]

    def arrival(self, characters: int) -> float:
        """When so much text had come."""
        return self.arrivals[bisect.bisect_left(self.characters, characters)]


async def read_stream(connection: Connection, request: bytes) -> Stream:
    """Ask, and note the time of every piece of text.

    Raises:
        BadReply: The answer did not end as the upstream ends it.
    """
    arrivals: list[float] = []
    characters: list[int] = []
    reason = None
    begun = time.perf_counter()
    async for event in connection.stream(request):
        if event.data == b"[DONE]":
            continue
        for choice in json.loads(event.data).get("choices") or ():
            if text := choice["delta"].get("content"):
                arrivals.append((event.at - begun) * 1_000)
                characters.append(len(text) + (characters[-1] if characters else 0))
            reason = choice["finish_reason"] or reason
    if reason != "stop" or not arrivals:
        raise BadReply(f"the stream ended with {reason}")
    total_ms = (time.perf_counter() - begun) * 1_000
    return Stream(tuple(arrivals), tuple(characters), total_ms)


def holdback(direct: Stream, guarded: Stream) -> Percentiles:
    """How much later each piece of the direct stream came through the guard, in milliseconds."""
    if direct.characters[-1] != guarded.characters[-1]:
        raise BadReply("the guard changed the text")
    pieces = zip(direct.arrivals, direct.characters, strict=True)
    return Percentiles.of(guarded.arrival(so_far) - at for at, so_far in pieces)


async def measure(setup: Setup) -> Part:
    """Both paces, round by round, each stream right after the direct one."""
    paced_tokens = max(_FEWEST_TOKENS, round(setup.seconds * 1_000 / _PACE_MS))
    paced: list[tuple[Stream, Stream]] = []
    fast: list[tuple[Stream, Stream]] = []
    async with fake_llm() as port:
        upstream = {"SLUICEWAY_UPSTREAM__BASE_URL": f"http://127.0.0.1:{port}/v1"}
        async with guard(setup, upstream) as server:
            ports = (port, server.port)
            await _pair(ports, 0, _FEWEST_TOKENS)  # opens the guard's connection to the upstream
            for _ in range(setup.rounds):
                paced.append(await _pair(ports, _PACE_MS, paced_tokens))
                fast.append(await _pair(ports, 0, _FAST_TOKENS))
    rows = (
        *_rows(f"one token every {_PACE_MS} ms", paced, paced_tokens),
        *_rows("as fast as possible", fast, _FAST_TOKENS),
        *_holdback_rows(paced),
    )
    details = {"paced_tokens": paced_tokens, "fast_tokens": _FAST_TOKENS}
    return Part(rows, {**details, "paced": _numbers(paced), "fast": _numbers(fast)})


async def _pair(ports: tuple[int, int], pace_ms: int, count: int) -> tuple[Stream, Stream]:
    """The same stream directly and through the guard."""
    message = {"role": "user", "content": _QUESTION}
    payload = {
        "model": f"pace-{pace_ms}",
        "messages": [message],
        "max_tokens": count,
        "stream": True,
    }
    direct, guarded = [await _stream(port, payload) for port in ports]
    return direct, guarded


async def _stream(port: int, payload: Mapping[str, Any]) -> Stream:
    # A connection of its own: servers close one that idles while the other side is measured.
    connection = await Connection.open(port)
    stream = await read_stream(connection, post(_PATH, payload))
    await connection.close()
    return stream


def _rows(pace: str, pairs: Sequence[tuple[Stream, Stream]], count: int) -> list[Row]:
    return [
        Row(
            what=f"stream, {pace}: time to first token",
            ours=median(guarded.first_ms for _, guarded in pairs),
            theirs=median(direct.first_ms for direct, _ in pairs),
            unit="ms",
            result=Spread.of(guarded.first_ms - direct.first_ms for direct, guarded in pairs),
            result_unit="ms more",
        ),
        Row(
            what=f"stream, {pace}: time per token",
            ours=median(guarded.total_ms / count for _, guarded in pairs),
            theirs=median(direct.total_ms / count for direct, _ in pairs),
            unit="ms",
            result=Spread.of(
                (guarded.total_ms - direct.total_ms) / count for direct, guarded in pairs
            ),
            result_unit="ms more",
        ),
        Row(
            what=f"stream, {pace}: {count} tokens",
            ours=median(guarded.total_ms for _, guarded in pairs),
            theirs=median(direct.total_ms for direct, _ in pairs),
            unit="ms",
            result=Spread.of(guarded.total_ms / direct.total_ms for direct, guarded in pairs),
        ),
    ]


def _holdback_rows(pairs: Sequence[tuple[Stream, Stream]]) -> list[Row]:
    held = [holdback(direct, guarded) for direct, guarded in pairs]
    named = (("p50", [one.p50 for one in held]), ("p95", [one.p95 for one in held]))
    return [
        Row(
            what=f"stream, one token every {_PACE_MS} ms: hold-back of a token, {name}",
            ours=median(values),
            theirs=None,
            unit="ms",
            result=Spread.of(values),
            result_unit="ms",
        )
        for name, values in named
    ]


def _numbers(pairs: Sequence[tuple[Stream, Stream]]) -> list[dict[str, float]]:
    return [
        {
            "direct_first_ms": direct.first_ms,
            "guarded_first_ms": guarded.first_ms,
            "direct_total_ms": direct.total_ms,
            "guarded_total_ms": guarded.total_ms,
            "guarded_pieces": len(guarded.arrivals),
        }
        for direct, guarded in pairs
    ]
