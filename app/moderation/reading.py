"""How a conversation is read: which texts the detectors get, and where their findings stand in it.

Knows nothing about detectors or policies. Every part is normalised into its views. The text parts
of one message are also read joined, because a model gets them as one text: a word cut in two by a
part boundary is whole again there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.conversation import Conversation, Message, Part, PartKind
from app.domain.detection import Detection, Scan, Unscanned
from app.domain.normalization.normalize import View, normalize
from app.domain.verdict import Coverage

_INLINE_CHARS: Final = 20_000
"""Longer texts are normalised in a thread, so that other requests go on."""
_JOINTS: Final = ("", "\n")
"""Servers differ in what they put between the parts of a message."""


@dataclass(frozen=True, slots=True)
class _Text:
    """One text as the detectors read it. The first view is the plain one.

    `parts` with the offset at which each begins: one part, or several that were joined.
    """

    parts: tuple[tuple[int, Part], ...]
    views: tuple[View, ...]

    @property
    def is_joined(self) -> bool:
        """Whether its parts are texts of their own, too."""
        return len(self.parts) > 1

    def places(self, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        """Where `[start, end)` of the whole text stands: field path and offsets in that field."""
        for offset, part in self.parts:
            first, last = max(start - offset, 0), min(end - offset, len(part.text))
            if first < last:
                yield part.path, first, last


@dataclass(frozen=True, slots=True)
class Reading:
    """A whole conversation, read once for all detectors.

    `unread` counts the characters that no detector gets; a medium counts as one.
    """

    texts: tuple[_Text, ...]
    unread: Counter[Unscanned]
    total: int

    def distinct(self) -> list[str]:
        """What a detector has to scan: each text once."""
        return list(dict.fromkeys(v.text for text in self.texts for v in text.views if v.text))

    def located(self, scans: Mapping[str, Scan]) -> tuple[Detection, ...]:
        """All detections of one detector, each with its place in the original field.

        What several views show at the same place counts once, with its highest score.
        """
        best: dict[tuple[str, str, int, int, str], Detection] = {}
        for text in self.texts:
            for view in text.views:
                if view.text:
                    _keep_best(best, text, view, scans[view.text].detections)
        return tuple(best.values())

    def covered(self, scans: Mapping[str, Scan]) -> Coverage:
        """How much of the original one detector read: the plain views, less their gaps."""
        unread = Counter(self.unread)
        for text in self.texts:
            plain = text.views[0]
            if text.is_joined or not plain.text:
                continue
            position = 0
            for gap in scans[plain.text].gaps:
                start, end = plain.to_original(gap.start, gap.end)
                unread[gap.reason] += max(0, end - max(start, position))
                position = max(position, end)
        reasons = tuple(reason for reason, chars in unread.most_common() if chars)
        return Coverage(self.total - unread.total(), self.total, reasons)


async def read(conversation: Conversation, *, tool_definitions: bool) -> Reading:
    """Normalise all that can be read of a conversation.

    Args:
        conversation: What is to be judged.
        tool_definitions: Whether the definitions of tools are read, too.
    """
    texts: list[_Text] = []
    unread: Counter[Unscanned] = Counter()
    total = 0
    for part in conversation.parts():
        total += len(part.text)
        if part.kind is PartKind.MEDIA:
            unread[Unscanned.MEDIA] += 1
            total += 1
        elif part.kind is PartKind.TOOL_DEFINITION and not tool_definitions:
            unread[Unscanned.EXCLUDED] += len(part.text)
        elif part.text:
            texts.append(_Text(((0, part),), await _views(part.text)))
    for message in conversation.messages:
        texts += await _joined(message)
    return Reading(tuple(texts), unread, total)


async def _joined(message: Message) -> list[_Text]:
    parts = [part for part in message.parts if part.kind is PartKind.TEXT and part.text]
    if len(parts) < 2:  # noqa: PLR2004 - one part is not joined to anything
        return []
    texts: list[_Text] = []
    for joint in _JOINTS:
        placed: list[tuple[int, Part]] = []
        offset = 0
        for part in parts:
            placed.append((offset, part))
            offset += len(part.text) + len(joint)
        whole = joint.join(part.text for part in parts)
        texts.append(_Text(tuple(placed), await _views(whole)))
    return texts


async def _views(text: str) -> tuple[View, ...]:
    if len(text) > _INLINE_CHARS:
        return await asyncio.to_thread(normalize, text)
    return normalize(text)


def _keep_best(
    best: dict[tuple[str, str, int, int, str], Detection],
    text: _Text,
    view: View,
    detections: Sequence[Detection],
) -> None:
    places: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
    for found in detections:
        span = (found.start, found.end)
        if span not in places:
            places[span] = list(text.places(*view.to_original(*span)))
        for path, start, end in places[span]:
            key = (path, found.category.value, start, end, found.label)
            if key not in best or found.score > best[key].score:
                best[key] = Detection(
                    found.detector,
                    found.category,
                    found.score,
                    start,
                    end,
                    found.label,
                    path,
                    view.name.value,
                )
