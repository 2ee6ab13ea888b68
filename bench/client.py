"""A plain HTTP/1.1 client over raw sockets: it must cost little on the cores it shares.

Knows nothing about the guard. Requests are built before the clock runs; replies are read by
`content-length`, streams by chunk, each event with the time at which it arrived.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

HOST = "127.0.0.1"


class BadReply(Exception):
    """The other side did not answer what a measurement needs."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer."""

    status: int
    body: bytes

    def require_ok(self) -> Self:
        """This reply, if its status is 200.

        Raises:
            BadReply: It is another one.
        """
        if self.status != 200:  # noqa: PLR2004 - an HTTP status
            raise BadReply(f"status {self.status}: {self.body[:300].decode(errors='replace')}")
        return self


@dataclass(frozen=True, slots=True)
class Event:
    """The data of one server-sent event, and when it arrived by `time.perf_counter`."""

    at: float
    data: bytes


def post(path: str, payload: Any) -> bytes:
    """A whole POST request with a JSON body."""
    body = json.dumps(payload).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    """A whole GET request."""
    return f"GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode()


class Connection:
    """One kept-alive connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection(HOST, port))

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()

    async def request(self, raw: bytes) -> Reply:
        """Send a request and read the whole answer."""
        self._writer.write(raw)
        status, headers = await self._head()
        if headers.get(b"transfer-encoding") == b"chunked":
            return Reply(status, b"".join([chunk async for chunk in self._chunks()]))
        return Reply(status, await self._reader.readexactly(int(headers[b"content-length"])))

    async def stream(self, raw: bytes) -> AsyncIterator[Event]:
        """Send a request and read server-sent events as they arrive; comments are left out.

        Raises:
            BadReply: The answer is not a stream.
        """
        self._writer.write(raw)
        status, headers = await self._head()
        if headers.get(b"transfer-encoding") != b"chunked":
            body = await self._reader.readexactly(int(headers.get(b"content-length", b"0")))
            raise BadReply(f"status {status}, no stream: {body[:300].decode(errors='replace')}")
        rest = b""
        async for chunk in self._chunks():
            at = time.perf_counter()
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                if event.startswith(b"data: "):
                    yield Event(at, event.removeprefix(b"data: "))

    async def _head(self) -> tuple[int, dict[bytes, bytes]]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        fields = (line.partition(b":") for line in lines)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            chunk = await self._reader.readexactly(size + 2)
            yield chunk[:-2]
        await self._reader.readexactly(2)
