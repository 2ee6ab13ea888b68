"""The guard as a process: started by its own command, watched from outside.

Knows nothing about what is measured with it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.client import HOST, BadReply, Connection, get
from bench.process import ProcessEnded, running
from bench.setup import Setup

_COMMAND: Final = str(Path(sys.executable).with_name("sluiceway"))
_START_S: Final = 180
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Memory:
    """What the kernel says of a process, in megabytes of 1,000,000 bytes."""

    resident: float
    peak: float


@dataclass(frozen=True, slots=True)
class Work:
    """What the guard's own metrics say it has done since it started."""

    windows: float
    padded_tokens: float
    inference_s: float

    def since(self, earlier: Work) -> Work:
        """The part that came after `earlier`."""
        return Work(
            self.windows - earlier.windows,
            self.padded_tokens - earlier.padded_tokens,
            self.inference_s - earlier.inference_s,
        )


@dataclass(frozen=True, slots=True)
class Guard:
    """A running guard; `ready_s` is the time from its start until it was ready."""

    port: int
    pid: int
    ready_s: float

    def memory(self) -> Memory:
        """Resident memory now, and at its highest."""
        status = Path(f"/proc/{self.pid}/status").read_text("utf-8")
        return Memory(_megabytes(status, "VmRSS"), _megabytes(status, "VmHWM"))

    async def work(self) -> Work:
        """What it counted so far."""
        connection = await Connection.open(self.port)
        try:
            text = (await connection.request(get("/metrics"))).require_ok().body.decode()
        finally:
            await connection.close()
        return Work(
            windows=_total(text, "guardrail_batch_size_sum"),
            padded_tokens=_total(text, "guardrail_batch_tokens_sum"),
            inference_s=_total(text, "guardrail_inference_seconds_sum"),
        )


@asynccontextmanager
async def guard(
    setup: Setup, environment: Mapping[str, str] | None = None, *, embedded: bool = False
) -> AsyncGenerator[Guard]:
    """Serve until the context is left.

    Args:
        setup: The model and its limits.
        environment: Further settings.
        embedded: Whether the embedded language model is loaded too.

    Raises:
        ProcessEnded: It did not start.
    """
    port = _free_port()
    settings = {
        **setup.guard_environment(),
        "SLUICEWAY_GENERATION__ENABLED": str(embedded).lower(),
        **(environment or {}),
    }
    begun = time.perf_counter()
    async with running([_COMMAND, "serve", "--port", str(port)], settings) as process:
        async with asyncio.timeout(_START_S):
            while not await _ready(port):
                if process.returncode is not None:
                    raise ProcessEnded("the guard did not start; see its output")
                await asyncio.sleep(_POLL_S)
        yield Guard(port, process.pid, time.perf_counter() - begun)


async def _ready(port: int) -> bool:
    try:
        connection = await Connection.open(port)
    except OSError:
        return False
    try:
        reply = await connection.request(get("/readyz"))
    finally:
        await connection.close()
    if reply.status == 503:  # noqa: PLR2004 - an HTTP status
        # It has started, and only starts when it is done loading: it will not get better.
        raise BadReply(f"the guard is not ready: {reply.body[:300].decode(errors='replace')}")
    return reply.status == 200  # noqa: PLR2004 - the same


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _megabytes(status: str, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ProcessEnded("the guard has ended")
    return int(found[1]) * 1_024 / 1_000_000


def _total(metrics: str, name: str) -> float:
    values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, values))
