"""Other processes of a benchmark: started, spoken to in lines of JSON, ended.

Knows nothing about what they do. Their complaints go to the terminal.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent

_STOP_S: Final = 20


class ProcessEnded(Exception):
    """A process that is still needed has ended."""


@asynccontextmanager
async def running(
    command: Sequence[str], environment: Mapping[str, str], *, talks: bool = False
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a command in the project's folder until the context is left.

    Args:
        command: Program and arguments.
        environment: Variables besides those of this process.
        talks: Whether its standard input and output are for us.
    """
    # What nobody reads must not be a pipe: a full one would stop the process.
    channel = asyncio.subprocess.PIPE if talks else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=channel,
        stdout=channel,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.communicate(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()


class Partner:
    """A module of this folder in a process of its own, which waits whenever it is not asked."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line, wait for one line."""
        if self._process.stdin is None:
            raise ProcessEnded("no way to ask")
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        """Wait for one line.

        Raises:
            ProcessEnded: There will be none.
        """
        line = await self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise ProcessEnded("a process of the benchmark ended early; see its output")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def partner(module: str, *arguments: str) -> AsyncGenerator[Partner]:
    """Start `bench.<module>` and wait until it says that it is ready."""
    command = [sys.executable, "-m", f"bench.{module}", *arguments]
    async with running(command, {}, talks=True) as process:
        yield Partner(process)
