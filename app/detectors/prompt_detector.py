"""The toxic prompt detector: windows of a text in, detections per category out.

Knows nothing about policies or runtimes: it asks a backend for tokens and a batcher for scores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain.categories import Category
from app.domain.chunker import windows
from app.domain.conversation import Stage
from app.domain.detection import Detection, OperatingPoint, Scan
from app.inference.artefact import Artefact
from app.inference.backend import Backend, Encoding
from app.metrics import Metrics

LOWEST_SCORE: Final = 0.02
"""Below this a category is not worth a detection; every threshold lies above."""

_INLINE_CHARACTERS: Final = 20_000
"""So much text is encoded in about five milliseconds; more would hold the event loop up."""


class Batcher(Protocol):
    """Scores windows of token ids, together with those of other callers."""

    async def submit(self, encodings: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One row of scores for each encoding, in order."""
        ...


class PromptDetector:
    """Judges prompts and answers, as the model of `artefact` was trained to."""

    def __init__(
        self, artefact: Artefact, backend: Backend, batcher: Batcher, *, metrics: Metrics
    ) -> None:
        self._artefact = artefact
        self._backend = backend
        self._batcher = batcher
        self._tokenization = metrics.tokenization_duration.labels(detector=artefact.name)

    @property
    def name(self) -> str:
        """The name of the model's folder."""
        return self._artefact.name

    @property
    def digest(self) -> str:
        """The hash of the card, which holds the hash of every file."""
        return self._artefact.digest

    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        """The card's threshold."""
        return self._artefact.threshold(stage, category, point)

    async def detect(self, texts: Sequence[str], stage: Stage) -> list[Scan]:
        """Judge every window of every text in one submission to the batcher."""
        with self._tokenization.time():
            if sum(map(len, texts)) > _INLINE_CHARACTERS:
                encodings = await asyncio.to_thread(self._encode, texts)
            else:
                encodings = self._encode(texts)
        spans = [
            windows(len(encoding.ids), self._artefact.window, self._artefact.overlap)
            for encoding in encodings
        ]
        pieces = [
            encoding.ids[start:end]
            for encoding, cuts in zip(encodings, spans, strict=True)
            for start, end in cuts
        ]
        rows = iter(await self._batcher.submit(pieces) if pieces else ())
        return [
            Scan(
                detections=tuple(
                    detection
                    for start, end in cuts
                    for detection in self._detections(
                        next(rows), stage, encoding.offsets[start][0], encoding.offsets[end - 1][1]
                    )
                ),
                gaps=encoding.gaps,
            )
            for encoding, cuts in zip(encodings, spans, strict=True)
        ]

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        return [self._backend.encode(text) for text in texts]

    def _detections(
        self, row: NDArray[np.float32], stage: Stage, start: int, end: int
    ) -> list[Detection]:
        categories = self._artefact.categories
        first = self._artefact.stages.index(stage) * len(categories)
        scores: list[float] = row[first : first + len(categories)].tolist()
        return [
            Detection(self.name, category, score, start, end)
            for category, score in zip(categories, scores, strict=True)
            if score >= LOWEST_SCORE
        ]
