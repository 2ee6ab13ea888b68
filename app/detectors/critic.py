"""The critic as a detector: how likely a text is to end unsafe, judged by every token so far.

Knows nothing about policies or networks: it asks a layout for tokens and a batcher for the running
risk of windows. The text may be of any model: it is read as the critic's own would have written it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from app.detectors.moderator import LOWEST_SCORE, Batcher
from app.domain.categories import Category
from app.domain.chunker import windows
from app.domain.conversation import Stage
from app.domain.detection import Detection, Gap, OperatingPoint, Scan, Unscanned
from app.inference.artefact import Artefact
from app.inference.backend import Encoding
from app.metrics import Metrics

NAME: Final = "critic"
TOKENIZER: Final = "tokenizer.json"

_INLINE_CHARACTERS: Final = 20_000
"""Longer texts are encoded in a thread, so that other requests go on."""


class Layout(Protocol):
    """Puts answers into the critic's tokens; safe in any thread."""

    def prompt(self, question: str) -> Sequence[int]:
        """What stands before an answer; nothing if the question is empty."""
        ...

    def encode(self, text: str) -> Encoding:
        """All of an answer."""
        ...


class CriticDetector:
    """Judges what a model says. An input is reported as not read: nothing follows it.

    A critic knows one risk, that of any harm its teacher finds. It is reported under each category
    of the card. Every window of a long text is read behind the question, as if it were the answer's
    beginning.

    Args:
        artefact: The checked model folder.
        layout: Its tokenizer and chat format.
        batcher: Answers the running risk of windows, each with its prompt before it.
        metrics: For the time of tokenization.
    """

    def __init__(
        self, artefact: Artefact, layout: Layout, batcher: Batcher, *, metrics: Metrics
    ) -> None:
        self._artefact = artefact
        self._layout = layout
        self._batcher = batcher
        self._tokenization = metrics.tokenization_duration.labels(detector=artefact.name)

    @property
    def name(self) -> str:
        """The name in the critic's card."""
        return self._artefact.name

    @property
    def digest(self) -> str:
        """The hash of the card, which holds the hash of every file."""
        return self._artefact.digest

    @property
    def reads_context(self) -> bool:
        """The same words may be an answer to anything."""
        return True

    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        """The running risk from which a text is stopped, as the card says."""
        return self._artefact.threshold(stage, category, point)

    async def detect(self, texts: Sequence[str], stage: Stage, context: str = "") -> list[Scan]:
        """Judge every window of every text in one submission to the batcher."""
        if stage not in self._artefact.stages:
            return [
                Scan(gaps=(Gap(0, len(text), Unscanned.DETECTOR_FAILED),) if text else ())
                for text in texts
            ]
        with self._tokenization.time():
            if sum(map(len, texts)) > _INLINE_CHARACTERS:
                prompt, encodings = await asyncio.to_thread(self._encode, texts, context)
            else:
                prompt, encodings = self._encode(texts, context)
        spans = [
            windows(len(encoding.ids), self._artefact.window, self._artefact.overlap)
            for encoding in encodings
        ]
        pieces = [
            [len(prompt), *prompt, *encoding.ids[start:end]]
            for encoding, cuts in zip(encodings, spans, strict=True)
            for start, end in cuts
        ]
        rows = iter(await self._batcher.submit(pieces) if pieces else ())
        return [
            Scan(
                tuple(
                    detection
                    for start, end in cuts
                    for detection in self._detections(
                        next(rows), stage, encoding.offsets[start][0], encoding.offsets[end - 1][1]
                    )
                ),
                encoding.gaps,
            )
            for encoding, cuts in zip(encodings, spans, strict=True)
        ]

    def _encode(self, texts: Sequence[str], context: str) -> tuple[Sequence[int], list[Encoding]]:
        return self._layout.prompt(context), [self._layout.encode(text) for text in texts]

    def _detections(
        self, row: NDArray[np.float32], stage: Stage, start: int, end: int
    ) -> list[Detection]:
        risk = float(row[0])
        return [
            Detection(self.name, category, risk, start, end)
            for category in self._artefact.categories
            if risk >= min(LOWEST_SCORE, self.threshold(stage, category, OperatingPoint.STRICT))
        ]
