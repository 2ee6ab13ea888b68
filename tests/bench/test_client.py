import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from bench.client import HOST, BadReply, Connection, Reply, get, post


@asynccontextmanager
async def answering(*pieces):
    """A connection to a server that answers every request with `pieces`, one write each."""
    requests = []
    done = asyncio.Event()

    async def answer(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            fields = dict(line.split(b": ") for line in head[:-4].split(b"\r\n")[1:])
            body = await reader.readexactly(int(fields.get(b"content-length", 0)))
            requests.append((head, body))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)

    async def serve(reader, writer):
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()
            done.set()

    server = await asyncio.start_server(serve, HOST, 0)
    connection = await Connection.open(server.sockets[0].getsockname()[1])
    try:
        yield connection, requests
    finally:
        await connection.close()
        await done.wait()
        server.close()
        await server.wait_closed()


def test_a_post_says_how_long_its_body_is():
    head, _, body = post("/moderate", {"input": "für"}).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /moderate HTTP/1.1\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body) == {"input": "für"}


async def test_replies_come_one_after_the_other_on_one_connection():
    whole = (b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 5\r\n\r\nhe", b"llo")
    async with answering(*whole) as (connection, requests):
        assert await connection.request(get("/a")) == Reply(200, b"hello")
        assert await connection.request(post("/b", {})) == Reply(200, b"hello")
    assert [head.split()[1] for head, _ in requests] == [b"/a", b"/b"]


async def test_a_chunked_reply_is_put_together():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with answering(head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n") as (connection, _):
        assert await connection.request(get("/")) == Reply(200, b"abcde")


def test_a_refusal_is_an_error_that_says_so():
    with pytest.raises(BadReply, match="status 429: slow down"):
        Reply(429, b"slow down").require_ok()


async def test_events_are_cut_wherever_the_chunks_are():
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = [b"data: o", b"ne\n\n: holding\n", b"\ndata: two\n\ndata: three\n\n"]
    pieces = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    async with answering(head, *pieces, b"0\r\n\r\n") as (connection, _):
        events = [event async for event in connection.stream(post("/", {}))]
        again = [event async for event in connection.stream(post("/", {}))]
    assert [event.data for event in events] == [b"one", b"two", b"three"]
    assert len(again) == 3
    assert events[0].at < events[1].at == events[2].at


async def test_an_answer_that_is_no_stream_is_an_error():
    refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\n\r\noops"
    async with answering(refusal) as (connection, _):
        with pytest.raises(BadReply, match="status 400, no stream: oops"):
            [event async for event in connection.stream(get("/"))]
