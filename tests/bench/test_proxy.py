import json

import pytest

from bench.client import BadReply, Event
from bench.proxy import Stream, holdback, read_stream


class Canned:
    """A connection on which fixed events arrive."""

    def __init__(self, *chunks):
        self._chunks = chunks

    async def stream(self, raw):
        for number, chunk in enumerate(self._chunks):
            yield Event(number, json.dumps(chunk).encode())
        yield Event(len(self._chunks), b"[DONE]")


def chunk(text=None, reason=None):
    return {"choices": [{"delta": {"content": text} if text else {}, "finish_reason": reason}]}


async def test_a_stream_is_when_its_text_came_and_how_much():
    events = (chunk(), chunk("ab"), chunk("cde"), chunk(reason="stop"), {"choices": []})
    stream = await read_stream(Canned(*events), b"")
    assert stream.characters == (2, 5)
    assert stream.arrivals[1] - stream.arrivals[0] == pytest.approx(1_000)
    assert stream.first_ms == stream.arrivals[0]


async def test_a_blocked_stream_is_no_measurement():
    with pytest.raises(BadReply, match="content_filter"):
        await read_stream(Canned(chunk("ab"), chunk(reason="content_filter")), b"")


async def test_a_stream_without_text_is_no_measurement():
    with pytest.raises(BadReply):
        await read_stream(Canned(chunk(reason="stop")), b"")


def test_holdback_is_how_much_later_each_token_left():
    direct = Stream((0.0, 10.0, 20.0, 30.0), (3, 6, 9, 12), 30.0)
    guarded = Stream((15.0, 40.0), (4, 12), 41.0)  # 4 characters: the second token left with 12
    held = holdback(direct, guarded)
    assert (held.p50, held.p95, held.p99) == (15.0, 30.0, 30.0)


def test_a_changed_text_cannot_be_compared():
    with pytest.raises(BadReply, match="changed"):
        holdback(Stream((1.0,), (3,), 1.0), Stream((1.0,), (4,), 1.0))
