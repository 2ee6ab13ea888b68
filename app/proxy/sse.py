"""Server-sent events, written. Reading them is httpx2's part, in `upstream.py`.

Knows nothing about chats: it frames JSON objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

MEDIA_TYPE: Final = "text/event-stream"
DONE_DATA: Final = "[DONE]"
DONE: Final = b"data: [DONE]\n\n"


def event(payload: Mapping[str, Any]) -> bytes:
    """One event; JSON has no line breaks outside of strings, and none in them."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip; it keeps the connection alive. `text` is ours and has one line."""
    return f": {text}\n\n".encode()
