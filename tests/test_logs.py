from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
import uvicorn
from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.domain.errors import ModelMissing
from app.logs import REQUEST_ID_HEADER, UVICORN_OPTIONS, configure

MARKER = "the user's own words"
Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """Logging as the process has it; call for what was written so far."""
    for owner, name in (
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
        (warnings, "showwarning"),
        (logging, "raiseExceptions"),
        (logging.getLogger("uvicorn.access"), "disabled"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers.clear()  # `configure` closes those it finds, and pytest still needs its own
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure("info", json=True)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def raise_chained() -> None:
    try:
        {}[MARKER]
    except KeyError as cause:
        raise ValueError(MARKER) from cause


def test_an_event_is_one_line_of_json(events: Events) -> None:
    structlog.get_logger("app.engine").info("detector_failed", detector="pii", note="two\nlines")
    (event,) = events()
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "detector_failed",
        "level": "info",
        "logger": "app.engine",
        "detector": "pii",
        "note": "two\nlines",
    }


def test_events_below_the_level_are_dropped(events: Events) -> None:
    structlog.get_logger().debug("too_small")
    logging.getLogger("library").debug("too small")
    assert events() == []


def test_a_terminal_gets_readable_lines(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure()
    try:
        raise_chained()
    except ValueError:
        structlog.get_logger().exception("detector_failed")
    assert "detector_failed" in terminal.getvalue()
    assert "raise_chained" in terminal.getvalue()
    assert MARKER not in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_anything_else_gets_json(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    configure()
    structlog.get_logger().info("started")
    assert json.loads(pipe.getvalue())["event"] == "started"


def test_the_request_id_joins_reply_and_events(events: Events) -> None:
    app = FastAPI()
    app.add_middleware(CorrelationIdMiddleware, header_name=REQUEST_ID_HEADER)

    @app.get("/")
    async def route() -> None:
        structlog.get_logger().info("judged")

    with TestClient(app) as client:
        reply = client.get("/")
    judged = next(event for event in events() if event["event"] == "judged")
    assert judged["request_id"] == reply.headers[REQUEST_ID_HEADER]


def test_an_exception_is_its_class_and_frames(events: Events) -> None:
    try:
        raise_chained()
    except ValueError:
        structlog.get_logger().exception("detector_failed")
    outer, cause = events()[0]["exceptions"]
    assert (outer["type"], cause["type"]) == ("ValueError", "KeyError")
    assert outer["frames"][-1].startswith("tests/test_logs.py:")
    assert outer["frames"][-1].endswith(" raise_chained")
    assert MARKER not in json.dumps(events())


def test_our_own_exceptions_keep_their_message(events: Events) -> None:
    structlog.get_logger().error("not_started", exc_info=ModelMissing("run `make weights`"))
    assert events()[0]["exceptions"] == [
        {"type": "ModelMissing", "message": "run `make weights`", "frames": []}
    ]


def test_every_member_of_a_group_is_described(events: Events) -> None:
    group = ExceptionGroup(MARKER, [ValueError(MARKER), TimeoutError(MARKER)])
    structlog.get_logger().error("tasks_failed", exc_info=group)
    kinds = [one["type"] for one in events()[0]["exceptions"]]
    assert kinds == ["ExceptionGroup", "ValueError", "TimeoutError"]
    assert MARKER not in json.dumps(events())


def test_a_circle_of_causes_ends(events: Events) -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    structlog.get_logger().error("odd", exc_info=first)
    assert [one["type"] for one in events()[0]["exceptions"]] == ["ValueError", "KeyError"]


def test_an_exception_without_traceback_is_no_exception(events: Events) -> None:
    structlog.get_logger().error("plain", exc_info=True)
    assert "exceptions" not in events()[0]


def test_of_a_library_only_the_place_is_kept(events: Events) -> None:
    try:
        raise_chained()
    except ValueError:
        logging.getLogger("library").exception("while reading %s", MARKER, extra={"text": MARKER})
    (event,) = events()
    assert event["event"] == "library_log"
    assert event["logger"] == "library"
    assert event["at"].startswith("test_logs.test_of_a_library_only_the_place_is_kept:")
    assert event["exceptions"][0]["type"] == "ValueError"
    assert MARKER not in json.dumps(event)


def test_a_record_that_cannot_be_formatted_prints_nothing(events: Events) -> None:
    logging.getLogger("library").error("%d", MARKER)
    assert events() == []


async def test_a_forgotten_task_does_not_tell_its_message(events: Events) -> None:
    async def fail() -> None:
        raise ValueError(MARKER)

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()
    (event,) = events()
    assert event["logger"] == "asyncio"
    assert event["exceptions"][0]["type"] == "ValueError"
    assert MARKER not in json.dumps(event)


def test_a_warning_does_not_tell_its_message(events: Events) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning(UserWarning(MARKER), UserWarning, "app/logs.py", 7)
    (event,) = events()
    assert (event["event"], event["type"], event["at"]) == (
        "python_warning",
        "UserWarning",
        "app/logs.py:7",
    )
    assert MARKER not in json.dumps(event)


def test_a_dying_thread_does_not_tell_its_message(events: Events) -> None:
    thread = threading.Thread(target=raise_chained, name="worker")
    thread.start()
    thread.join()
    (event,) = events()
    assert (event["event"], event["thread"]) == ("uncaught_exception", "worker")
    assert MARKER not in json.dumps(event)


def test_a_dying_process_does_not_tell_its_message(events: Events) -> None:
    sys.excepthook(ValueError, ValueError(MARKER), None)
    (event,) = events()
    assert event["event"] == "uncaught_exception"
    assert MARKER not in json.dumps(event)


def test_who_presses_control_c_is_not_reported(
    events: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert events() == []
    assert capsys.readouterr().err == "KeyboardInterrupt\n"


def test_a_failing_finalizer_does_not_tell_its_message(events: Events) -> None:
    class Closing:
        def __del__(self) -> None:
            raise ValueError(MARKER)

    Closing()
    gc.collect()
    (event,) = events()
    assert event["event"] == "unraisable_exception"
    assert MARKER not in json.dumps(event)


async def test_uvicorn_speaks_through_the_same_pipeline(events: Events) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError(MARKER)

    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", **UVICORN_OPTIONS))
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    target = MARKER.replace(" ", "%20")
    writer.write(f"GET /?q={target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    assert b"500" in await reader.readline()
    writer.close()
    server.should_exit = True
    await serving
    messages = [event.get("message", "") for event in events()]
    assert any(message.startswith("Started server process") for message in messages)
    failed = [event for event in events() if "exceptions" in event]
    assert [one["exceptions"][0]["type"] for one in failed] == ["RuntimeError"]
    assert MARKER not in json.dumps(events())
    assert target not in json.dumps(events())
