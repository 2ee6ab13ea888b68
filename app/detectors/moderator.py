"""The detector behind a model: windows of a text, and what it answers, in; categories out.

Knows nothing about policies or runtimes: it asks a backend for tokens and a batcher for scores.
One class for every model folder (`prompt-detector`, `moderator`, `moderator-large`): what a model
reads and what its scores mean stands in its card.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain.categories import Category
from app.domain.chunker import both_ends, windows
from app.domain.conversation import Stage
from app.domain.detection import Detection, OperatingPoint, Scan
from app.inference.artefact import Artefact
from app.inference.backend import Backend, Encoding
from app.metrics import Metrics

LOWEST_SCORE: Final = 0.02
"""Below this a category is not worth a detection, unless its own threshold is lower still."""

_INLINE_CHARACTERS: Final = 20_000
"""So much text is encoded in about five milliseconds; more would hold the event loop up."""


class Batcher(Protocol):
    """Scores windows of token ids, together with those of other callers."""

    async def submit(self, encodings: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One row of scores for each encoding, in order."""
        ...


class Moderator:
    """Judges prompts and answers, as the model of `artefact` was trained to.

    A model that reads context gets that of an answer before every window of it, a separator
    between the two.
    """

    def __init__(
        self, artefact: Artefact, backend: Backend, batcher: Batcher, *, metrics: Metrics
    ) -> None:
        self._artefact = artefact
        self._backend = backend
        self._batcher = batcher
        self._floors = {stage: _floors(artefact, stage) for stage in artefact.stages}
        self._tokenization = metrics.tokenization_duration.labels(detector=artefact.name)

    @property
    def name(self) -> str:
        """The name in the model's card."""
        return self._artefact.name

    @property
    def digest(self) -> str:
        """The hash of the card, which holds the hash of every file."""
        return self._artefact.digest

    @property
    def reads_context(self) -> bool:
        """Whether the model was trained with context."""
        return self._artefact.context_tokens > 0

    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        """The card's threshold."""
        return self._artefact.threshold(stage, category, point)

    async def detect(self, texts: Sequence[str], stage: Stage, context: str = "") -> list[Scan]:
        """Judge every window of every text in one submission to the batcher."""
        with self._tokenization.time():
            if len(context) + sum(map(len, texts)) > _INLINE_CHARACTERS:
                prefix, encodings = await asyncio.to_thread(self._encode, texts, context)
            else:
                prefix, encodings = self._encode(texts, context)
        spans = [
            windows(len(encoding.ids), self._artefact.window, self._artefact.overlap)
            for encoding in encodings
        ]
        pieces = [
            prefix + encoding.ids[start:end]
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

    def _encode(self, texts: Sequence[str], context: str) -> tuple[list[int], list[Encoding]]:
        """What stands before every window, and the texts."""
        return self._prefix(context), [self._backend.encode(text) for text in texts]

    def _prefix(self, context: str) -> list[int]:
        if not context or not self.reads_context:
            return []
        ids = both_ends(self._backend.encode(context).ids, self._artefact.context_tokens)
        return [*ids, self._backend.separator_id] if ids else []

    def _detections(
        self, row: NDArray[np.float32], stage: Stage, start: int, end: int
    ) -> list[Detection]:
        categories = self._artefact.categories
        first = self._artefact.stages.index(stage) * len(categories)
        scores: list[float] = row[first : first + len(categories)].tolist()
        floors = self._floors[stage]
        return [
            Detection(self.name, category, score, start, end)
            for category, score in zip(categories, scores, strict=True)
            if score >= floors[category]
        ]


def _floors(artefact: Artefact, stage: Stage) -> Mapping[Category, float]:
    """The score below which a category is left out: never one that is over a threshold."""
    return {
        category: min(LOWEST_SCORE, artefact.threshold(stage, category, OperatingPoint.STRICT))
        for category in artefact.categories
    }
