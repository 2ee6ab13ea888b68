from __future__ import annotations

import json

from app.proxy import sse


def test_an_event_is_one_line_whatever_its_text() -> None:
    text = "a\nb\r\nc\u2028d \U0001f600"
    written = sse.event({"text": text})
    assert written.count(b"\n") == 2
    assert b"\r" not in written
    assert written.endswith(b"\n\n")
    assert json.loads(written.removeprefix(b"data: ")) == {"text": text}


def test_a_comment_is_no_event() -> None:
    assert sse.comment("holding") == b": holding\n\n"
