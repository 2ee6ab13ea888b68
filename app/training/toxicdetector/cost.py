"""What the detector adds to a chat, in milliseconds, on the running engine with one thread.

Knows nothing about training. Texts are made of words, so that no two share more than the frame.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

from app.detectors.toxic_detector import WEIGHTS, ToxicDetector
from app.domain.conversation import Stage
from app.generation.chatml import ChatMl, Turn, load_tokenizer
from app.generation.engine import Engine, EngineLimits
from app.generation.request import GenerationRequest
from app.generation.user_prompts import UserPrompts
from app.inference.artefact import load_artefact
from app.inference.states_mlp import StatesMlp
from app.metrics import Metrics

_WORDS: Final = (
    "garden",
    "river",
    "stone",
    "music",
    "letter",
    "window",
    "summer",
    "bread",
    "market",
)
_SIZES: Final = (16, 64, 200)  # words, of about a token each
_REPEATS: Final = 7


def measure_cost(folder: Path, model: Path) -> dict[str, Any]:
    """Milliseconds by length of the text: the median of several new texts.

    `chat` is the time to a chat's first token; `detector` that of the detector alone; `both` that
    of the detector and then the chat, which does not read the prompt again; `mlp` is the
    classifier without the language model.
    """
    return asyncio.run(_measure(folder, model))


async def _measure(folder: Path, model: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(folder)
    artefact = load_artefact(model)
    mlp = StatesMlp(artefact.path(WEIGHTS))
    prompts = UserPrompts(tokenizer, window=artefact.window, overlap=artefact.overlap)
    engine = Engine.load(folder, tokenizer, EngineLimits(threads=1), Metrics())
    engine.start()
    detector = ToxicDetector(artefact, mlp, prompts, engine)
    chance = random.Random(7)  # noqa: S311 - texts to measure with

    async def chat(text: str) -> None:
        request = GenerationRequest(ChatMl(tokenizer).encode([Turn("user", text)]), max_tokens=1)
        async for _ in engine.submit(request):
            pass

    async def detect(text: str) -> None:
        await detector.detect([text], Stage.INPUT)

    async def both(text: str) -> None:
        await detect(text)
        await chat(text)

    async def classify(text: str) -> None:
        del text
        await asyncio.to_thread(mlp.scores, states)

    found: dict[str, Any] = {}
    try:
        states = await engine.read(ChatMl(tokenizer).encode([Turn("user", "Hello")]))
        for words in _SIZES:
            ways = {"chat": chat, "detector": detect, "both": both, "mlp": classify}
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(_REPEATS):
                for name, way in ways.items():
                    text = " ".join(chance.choices(_WORDS, k=words))
                    times[name].append(await _milliseconds(way, text))
            row = {name: round(median(each), 1) for name, each in times.items()}
            row["added"] = round(row["both"] - row["chat"], 1)
            found[f"{words} words"] = row
            print(f"{words} words: {row}", flush=True)
    finally:
        await engine.close()
    return found


async def _milliseconds(way: Callable[[str], Awaitable[None]], text: str) -> float:
    begun = time.perf_counter()
    await way(text)
    return (time.perf_counter() - begun) * 1_000
