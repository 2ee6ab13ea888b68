import asyncio
import json
from contextlib import asynccontextmanager

from bench.client import HOST, Connection, post
from bench.fake_llm import answer, fake_llm, tokens
from bench.proxy import read_stream


def chat(pace_ms, count):
    payload = {"model": f"pace-{pace_ms}", "max_tokens": count, "stream": True, "messages": []}
    return post("/v1/chat/completions", payload)


@asynccontextmanager
async def connected():
    """A connection to the fake model in this process; both ends are closed behind it."""
    done = asyncio.Event()

    async def serve(reader, writer):
        await answer(reader, writer)
        await writer.wait_closed()
        done.set()

    server = await asyncio.start_server(serve, HOST, 0)
    connection = await Connection.open(server.sockets[0].getsockname()[1])
    yield connection
    await connection.close()
    await done.wait()
    server.close()
    await server.wait_closed()


async def test_the_stream_is_one_chunk_for_each_token_and_an_end():
    async with connected() as connection:
        *chunks, last = [event.data async for event in connection.stream(chat(0, 5))]
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert [choice["delta"].get("content") for choice in choices] == [*tokens(5), None]
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
    assert last == b"[DONE]"


async def test_tokens_keep_their_pace():
    async with connected() as connection:
        events = [event async for event in connection.stream(chat(5, 4))]
    # Never early: the due times count from before the first token.
    assert events[3].at - events[0].at > 0.010


async def test_it_runs_in_a_process_of_its_own():
    async with fake_llm() as port:
        connection = await Connection.open(port)
        first = await read_stream(connection, chat(0, 20))
        second = await read_stream(connection, chat(0, 20))
        await connection.close()
    assert first.characters[-1] == second.characters[-1] == len("".join(tokens(20)))
