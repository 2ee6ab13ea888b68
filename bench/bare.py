"""The opponent: the bare ONNX Runtime session with its tokenizer, alone in a process.

Knows nothing about HTTP, queues, policies or normalisation. It sees many texts at once, sorts their
windows by length, and fills its batches as far as is fastest within the budget: a strong opponent.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from app.domain.chunker import windows
from app.inference.artefact import load_artefact
from app.inference.onnx_backend import OnnxBackend
from bench.process import Partner, partner
from bench.setup import Setup
from bench.texts import make_texts

HORIZON: Final = 512
"""Texts that are sorted together: as many as the guard's batcher looks through."""
_SHARES: Final = (1, 4, 16)
"""Full batches are not the fastest everywhere: on a CPU small ones stay in its cache."""


class BareSession:
    """The model as the guard loads it, and nothing around it."""

    def __init__(self, setup: Setup) -> None:
        self._artefact = load_artefact(setup.model)
        self.batch_tokens = setup.max_batch_tokens
        self._backend = OnnxBackend.of_artefact(
            self._artefact, device=setup.device, intra_op_threads=setup.threads
        )
        self._backend.warm_up()

    def tune(self, texts: Sequence[str]) -> None:
        """Keep the batch size within the budget that judges these texts fastest."""
        times: dict[int, float] = {}
        for size in [self.batch_tokens // share for share in _SHARES]:
            self.batch_tokens = size
            begun = time.perf_counter()
            self.score(texts)
            times[size] = time.perf_counter() - begun
        self.batch_tokens = min(times, key=lambda size: times[size])

    def score(self, texts: Sequence[str]) -> int:
        """Judge all texts; how many windows they had."""
        cuts = sorted((window for text in texts for window in self._windows(text)), key=len)
        for batch in batches(cuts, self.batch_tokens):
            self._backend.predict(batch)
        return len(cuts)

    def _windows(self, text: str) -> Iterator[list[int]]:
        ids = self._backend.encode(text).ids
        for start, end in windows(len(ids), self._artefact.window, self._artefact.overlap):
            yield ids[start:end]


def batches(ordered: Sequence[list[int]], budget: int) -> Iterator[list[list[int]]]:
    """Cut windows that are sorted by length into batches within a budget that counts padding."""
    batch: list[list[int]] = []
    for window in ordered:
        if batch and len(window) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def throughput(session: BareSession, texts: Sequence[str], seconds: float) -> dict[str, Any]:
    """Judge the texts again and again for at least so long."""
    done = scored = 0
    begun = time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        scored += session.score(texts)
        done += len(texts)
    return {"texts": done, "windows": scored, "seconds": elapsed}


def latency(session: BareSession, texts: Sequence[str], seconds: float) -> dict[str, Any]:
    """Judge one text after the other for so long; the milliseconds of each."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        session.score([texts[len(times) % len(texts)]])
        times.append((time.perf_counter() - begun) * 1_000)
    return {"milliseconds": times}


@asynccontextmanager
async def bare_process(setup: Setup) -> AsyncGenerator[tuple[Partner, int]]:
    """The bare session in its own process, idle until it is asked, and its batch size in tokens."""
    async with partner("bare", setup.to_json()) as session:
        yield session, (await session.hear())["batch_tokens"]


def main(arguments: Sequence[str]) -> None:
    """Answer the questions on standard input until it ends."""
    setup = Setup.from_json(arguments[0])
    session = BareSession(setup)
    texts = make_texts(HORIZON)
    session.tune(texts[::4])
    measures = {"throughput": throughput, "latency": latency}
    print(json.dumps({"batch_tokens": session.batch_tokens}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(measures[asked["measure"]](session, texts, asked["seconds"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
