"""Resident memory of the guard, and the time from its start until it is ready.

Knows nothing about speed under load. Memory is read after work, not before: a model that has not
run yet looks small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Final

from app.generation.weights import is_installed
from bench.client import Connection, post
from bench.server import Guard, Memory, guard
from bench.setup import Setup
from bench.summary import Spread
from bench.table import Aim, Direction, Part, Row
from bench.texts import make_texts

STARTS: Final = 3
_LIST: Final = 32
_LISTS: Final = 16
_NEEDED: Final = ("torch", "gguf", "safetensors")


@dataclass(frozen=True, slots=True)
class Start:
    """One start: how long it took, memory when ready and after work."""

    ready_s: float
    at_rest: Memory
    after_work: Memory


async def measure(setup: Setup) -> Part:
    """Each kind of guard three times, after a first start that does not count."""
    alone = await _starts(setup, embedded=False)
    rows = _rows("guard with its detectors", alone, memory_aim=400)
    details = {"alone": list(map(asdict, alone))}
    if not (is_installed() and all(map(find_spec, _NEEDED))):
        note = "Not measured: the embedded language model, which is not installed."
        return Part(tuple(rows), details, (note,))
    chatting = await _starts(setup, embedded=True)
    rows += _rows("guard with the embedded language model", chatting, memory_aim=1_300)
    return Part(tuple(rows), {**details, "embedded": list(map(asdict, chatting))})


async def _starts(setup: Setup, *, embedded: bool) -> list[Start]:
    async with guard(setup, embedded=embedded):
        pass  # compiles modules, converts weights, fills the page cache
    return [await _start(setup, embedded=embedded) for _ in range(STARTS)]


async def _start(setup: Setup, *, embedded: bool) -> Start:
    async with guard(setup, embedded=embedded) as server:
        at_rest = server.memory()
        await _work(server, embedded=embedded)
        return Start(server.ready_s, at_rest, server.memory())


async def _work(server: Guard, *, embedded: bool) -> None:
    texts = make_texts(_LIST * _LISTS)
    connection = await Connection.open(server.port)
    for first in range(0, len(texts), _LIST):
        request = post("/moderate", {"input": texts[first : first + _LIST]})
        (await connection.request(request)).require_ok()
    if embedded:
        message = {"role": "user", "content": "What is the capital of France?"}
        request = post("/v1/chat/completions", {"messages": [message], "max_tokens": 32})
        (await connection.request(request)).require_ok()
    await connection.close()


def _rows(what: str, starts: Sequence[Start], *, memory_aim: float) -> list[Row]:
    memory = Spread.of(start.after_work.resident for start in starts)
    ready = Spread.of(start.ready_s for start in starts)
    return [
        Row(
            what=f"{what}: resident memory after work",
            ours=memory.median,
            theirs=None,
            unit="MB",
            result=memory,
            result_unit="MB",
            aim=Aim(Direction.AT_MOST, memory_aim),
        ),
        Row(
            what=f"{what}: start to ready",
            ours=ready.median,
            theirs=None,
            unit="s",
            result=ready,
            result_unit="s",
            aim=Aim(Direction.AT_MOST, 5),
        ),
    ]
