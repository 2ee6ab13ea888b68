"""How a rule detector is run: at once when the texts are short, in a worker thread when not.

Knows nothing about what the rules are: it is given the function that finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from app.domain.detection import Detection, Scan

Find = Callable[[str], Sequence[Detection]]

# About a millisecond or two of work: less than a thread's round trip under load is worth.
INLINE_CHARS: Final = 20_000


async def scan_texts(find: Find, texts: Sequence[str]) -> list[Scan]:
    """One scan per text, in order. Long texts do not hold up the event loop."""
    if sum(map(len, texts)) <= INLINE_CHARS:
        return _scans(find, texts)
    return await asyncio.to_thread(_scans, find, texts)


def _scans(find: Find, texts: Sequence[str]) -> list[Scan]:
    return [Scan(tuple(find(text))) for text in texts]
