"""Small stand-ins with recorded calls, one per protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import Detection, OperatingPoint, Scan


@dataclass
class PhraseDetector:
    """Finds fixed phrases, ignoring case; the answer of a text depends on nothing else."""

    phrases: tuple[str, ...] = ("forbidden",)
    name: str = "keywords"
    category: Category = Category.BLOCKLIST
    label: str = ""
    digest: str = "phrases-1"
    error: Exception | None = None
    hang: bool = False
    score: float = 1.0
    reads_context: bool = False
    calls: list[list[str]] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)

    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        return 0.5

    async def detect(self, texts: Sequence[str], stage: Stage, context: str = "") -> list[Scan]:
        self.calls.append(list(texts))
        self.contexts.append(context)
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return [self._scan(text) for text in texts]

    def _scan(self, text: str) -> Scan:
        found: list[Detection] = []
        lowered = text.lower()
        for phrase in self.phrases:
            start = lowered.find(phrase)
            while start >= 0:
                end = start + len(phrase)
                found.append(
                    Detection(self.name, self.category, self.score, start, end, self.label)
                )
                start = lowered.find(phrase, end)
        return Scan(tuple(found))
