"""A language model that is none: streams known words at a known pace, in a process of its own.

Knows nothing about the guard. The caller chooses the pace by the name of the model (`pace-20` is
one token every 20 ms, `pace-0` as fast as it goes) and the number of tokens by `max_tokens`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from bench.client import HOST
from bench.process import partner
from bench.texts import make_prose

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def tokens(count: int) -> list[str]:
    """The answer to every question: its first `count` tokens, one word each."""
    return [word + " " for word in make_prose(count).split()]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection until the other side hangs up."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            request = json.loads(await reader.readexactly(_content_length(head)))
            await _stream(writer, request)
    writer.close()


async def _stream(writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
    pace_s = int(request["model"].removeprefix("pace-")) / 1_000
    writer.write(_HEAD)
    clock = asyncio.get_running_loop().time
    begun = clock()
    for number, token in enumerate(tokens(request["max_tokens"])):
        # Each token has its own due time, so that the pace does not drift.
        if (wait := begun + number * pace_s - clock()) > 0:
            await asyncio.sleep(wait)
        await _send(writer, _chunk(request["model"], {"content": token}, None))
    await _send(writer, _chunk(request["model"], {}, "stop"))
    await _send(writer, b"[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    event = b"data: " + data + b"\n\n"
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
    await writer.drain()


def _chunk(model: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": model,
            "choices": [choice],
        }
    ).encode()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


@asynccontextmanager
async def fake_llm() -> AsyncGenerator[int]:
    """The port of a running one."""
    async with partner("fake_llm") as process:
        port: int = (await process.hear())["port"]
        yield port


async def main() -> None:
    """Serve on a free port, which is told on standard output, until ended."""
    server = await asyncio.start_server(answer, HOST, 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
