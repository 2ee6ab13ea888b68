from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.api.world import FakeProxy, World
from tests.serving import serve

CHAT = {"model": "m", "messages": [{"role": "user", "content": "fine"}]}


class HangingProxy(FakeProxy):
    """Never answers; notes when it is told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.cancelled = threading.Event()

    async def chat(self, payload: Any, *, policy: Any, headers: Any) -> Any:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.mark.e2e
def test_a_caller_that_leaves_stops_the_work(world: World) -> None:
    world.proxy = HangingProxy()
    body = json.dumps(CHAT).encode()
    with serve(world.app()) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port)) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: guard\r\n"
                b"content-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert world.proxy.entered.wait(10)
            assert not world.proxy.cancelled.is_set()
        assert world.proxy.cancelled.wait(10)


def test_a_caller_that_stays_gets_the_answer_and_the_error(client: Any, world: World) -> None:
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    world.proxy.error = RuntimeError("broken")
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 500
