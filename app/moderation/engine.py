"""The engine: one conversation, one stage, one policy in; one verdict out.

Knows nothing about tokens, batches, HTTP or wire formats. Every part is normalised once, every
detector reads all views of all parts, spans go back to the original text, the policy decides.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from app.domain.conversation import Conversation, Part, PartKind, Stage
from app.domain.detection import Detection, Detector, Scan, Unscanned
from app.domain.errors import ConfigurationError, DetectorError, DetectorTimeout, Overloaded
from app.domain.normalize import View, normalize
from app.domain.policy import Action, Policy, StagePolicy
from app.domain.verdict import Coverage, DetectorStatus, Outcome, Verdict, decide
from app.metrics import Metrics
from app.moderation.cache import ScanCache, scan_key

_INLINE_CHARS: Final = 20_000
"""Longer texts are normalised in a thread, so that other requests go on."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A part as the detectors read it. The first view is the plain text."""

    part: Part
    views: tuple[View, ...]


class Engine:
    """Judges conversations. Safe to use from many tasks of one event loop.

    Args:
        detectors: Every detector there is, by name; a policy chooses among them.
        metrics: Where verdicts, times and failures are counted.
        cache: Scans of texts seen before; only for the detectors in `cached`.
        cached: The detectors whose scan costs more than a look into the cache: the models.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        *,
        metrics: Metrics,
        cache: ScanCache | None = None,
        cached: Collection[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.detectors = detectors
        self._metrics = metrics
        self._cache = cache
        self._cached = frozenset(cached)
        self._clock = clock

    async def moderate(
        self, conversation: Conversation, stage: Stage, policy: Policy, *, endpoint: str | None
    ) -> Verdict:
        """Judge every part of `conversation`. `endpoint` is a metric label; None counts nothing.

        A detector that fails does not raise: what follows is the policy's choice, and the verdict
        says so (`degraded`, `unjudged`, `passed_unjudged`).
        """
        begun = self._clock()
        rules = policy.stage(stage)
        readings, unread = await self._read(conversation, rules)
        outcomes = await self._consult_all(readings, unread, stage, rules)
        media = (Unscanned.MEDIA,) if unread[Unscanned.MEDIA] else ()
        verdict = decide(outcomes, policy, stage, media)
        if endpoint is not None:
            self._count(verdict, endpoint, self._clock() - begun)
        return verdict

    async def _read(
        self, conversation: Conversation, rules: StagePolicy
    ) -> tuple[list[_Reading], Counter[Unscanned]]:
        """Normalised parts, and how many characters nobody will read; a medium counts as one."""
        readings: list[_Reading] = []
        unread: Counter[Unscanned] = Counter()
        for part in conversation.parts():
            if part.kind is PartKind.MEDIA:
                unread[Unscanned.MEDIA] += 1
            elif part.kind is PartKind.TOOL_DEFINITION and not rules.scan_tool_definitions:
                unread[Unscanned.EXCLUDED] += len(part.text)
            elif len(part.text) > _INLINE_CHARS:
                readings.append(_Reading(part, await asyncio.to_thread(normalize, part.text)))
            elif part.text:
                readings.append(_Reading(part, normalize(part.text)))
        return readings, unread

    async def _consult_all(
        self,
        readings: list[_Reading],
        unread: Counter[Unscanned],
        stage: Stage,
        rules: StagePolicy,
    ) -> list[Outcome]:
        """The rules first, as they cost microseconds; then all models at once."""
        outcomes: dict[str, Outcome] = {}
        models: list[Detector] = []
        for name in rules.detectors:
            detector = self._detector(name)
            if name in self._cached:
                models.append(detector)
            else:
                outcomes[name] = await self._consult(detector, readings, unread, stage, rules)
        if len(models) == 1:
            only = models[0]
            outcomes[only.name] = await self._consult(only, readings, unread, stage, rules)
        elif models:
            answers = await asyncio.gather(
                *(self._consult(model, readings, unread, stage, rules) for model in models)
            )
            outcomes.update({answer.detector.name: answer for answer in answers})
        return [outcomes[name] for name in rules.detectors]

    def _detector(self, name: str) -> Detector:
        try:
            return self.detectors[name]
        except KeyError:
            raise ConfigurationError(f"there is no detector named {name!r}") from None

    async def _consult(
        self,
        detector: Detector,
        readings: list[_Reading],
        unread: Counter[Unscanned],
        stage: Stage,
        rules: StagePolicy,
    ) -> Outcome:
        """One detector's answer for all parts; a failure becomes a status."""
        begun = self._clock()
        texts = list(dict.fromkeys(view.text for r in readings for view in r.views if view.text))
        total = sum(len(reading.part.text) for reading in readings) + unread.total()
        status, cached = DetectorStatus.OK, False
        detections: tuple[Detection, ...] = ()
        coverage = Coverage(0, total, (Unscanned.DETECTOR_FAILED,))
        try:
            async with asyncio.timeout(rules.deadline_ms / 1_000):
                scans, cached = await self._scan(detector, texts, stage)
            detections = _located(readings, scans)
            coverage = _covered(readings, scans, total, unread)
        except (TimeoutError, DetectorTimeout):
            status = DetectorStatus.TIMEOUT
        except Overloaded:
            status = DetectorStatus.OVERLOADED
        except Exception as error:  # noqa: BLE001 - no failure of a detector may lose a verdict
            status = DetectorStatus.ERROR
            _log.error("detector_failed", detector=detector.name, error=type(error).__name__)
        milliseconds = (self._clock() - begun) * 1_000
        outcome = Outcome(detector, status, detections, milliseconds, cached, coverage)
        self._observe(outcome, stage)
        return outcome

    async def _scan(
        self, detector: Detector, texts: Sequence[str], stage: Stage
    ) -> tuple[dict[str, Scan], bool]:
        """A scan for each text, and whether all of them came from the cache."""
        known: dict[str, Scan] = {}
        keys: dict[str, str] = {}
        cache = self._cache if detector.name in self._cached else None
        if cache is not None and texts:
            keys = {text: scan_key(detector, stage, text) for text in texts}
            found = await cache.get(list(keys.values()))
            known = {t: scan for t, scan in zip(texts, found, strict=True) if scan is not None}
            requests = self._metrics.cache_requests
            requests.labels(cache=cache.name, result="hit").inc(len(known))
            requests.labels(cache=cache.name, result="miss").inc(len(texts) - len(known))
        missing = [text for text in texts if text not in known]
        if not missing:
            return known, bool(texts)
        scans = await detector.detect(missing, stage)
        fresh = dict(zip(missing, scans, strict=True))
        if any(not 0.0 <= d.score <= 1.0 for scan in scans for d in scan.detections):
            raise DetectorError(f"{detector.name} gave a score that is no probability")
        if cache is not None:
            await cache.put({keys[text]: scan for text, scan in fresh.items()})
        return known | fresh, False

    def _observe(self, outcome: Outcome, stage: Stage) -> None:
        metrics, name, coverage = self._metrics, outcome.detector.name, outcome.coverage
        seconds = outcome.duration_ms / 1_000
        metrics.detector_duration.labels(detector=name, stage=stage.value).observe(seconds)
        if outcome.status.failed:
            metrics.detector_errors.labels(detector=name, error_type=outcome.status.value).inc()
        best: dict[str, float] = {}
        for detection in outcome.detections:
            key = detection.category.value
            best[key] = max(best.get(key, 0.0), detection.score)
        for category, score in best.items():
            metrics.score.labels(detector=name, category=category).observe(score)
        metrics.scanned_chars.labels(detector=name).inc(coverage.scanned)
        for reason in coverage.reasons[:1]:
            # Several reasons share the gap: it is counted under the largest.
            gap = coverage.total - coverage.scanned
            metrics.unscanned_chars.labels(detector=name, reason=reason.value).inc(gap)

    def _count(self, verdict: Verdict, endpoint: str, seconds: float) -> None:
        metrics, stage = self._metrics, verdict.stage.value
        policy = metrics.policy_label(verdict.policy)
        metrics.requests.labels(
            endpoint=endpoint, stage=stage, policy=policy, verdict=verdict.action.value
        ).inc()
        metrics.request_duration.labels(endpoint=endpoint, stage=stage).observe(seconds)
        if verdict.blocks:
            for category, action in verdict.flagged.items():
                if action is Action.BLOCK:
                    metrics.blocks.labels(stage=stage, category=category.value, policy=policy).inc()
        if verdict.passed_unjudged:
            metrics.bypass.labels(stage=stage, error_type=verdict.degraded).inc()


def _located(readings: Sequence[_Reading], scans: Mapping[str, Scan]) -> tuple[Detection, ...]:
    """All detections with their field path and their place in the original text.

    What several views show at the same place counts once, with its highest score.
    """
    best: dict[tuple[str, str, int, int, str], Detection] = {}
    for reading in readings:
        path = reading.part.path
        for view in reading.views:
            if not view.text:
                continue
            places: dict[tuple[int, int], tuple[int, int]] = {}
            for found in scans[view.text].detections:
                span = (found.start, found.end)
                if span not in places:
                    places[span] = view.to_original(*span)
                start, end = places[span]
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
    return tuple(best.values())


def _covered(
    readings: Sequence[_Reading],
    scans: Mapping[str, Scan],
    total: int,
    elsewhere: Counter[Unscanned],
) -> Coverage:
    """How much of the original text the plain views show, less the stretches nobody could read."""
    unread = Counter(elsewhere)
    for reading in readings:
        plain = reading.views[0]
        position = 0
        for gap in scans[plain.text].gaps if plain.text else ():
            start, end = plain.to_original(gap.start, gap.end)
            fresh = max(0, end - max(start, position))
            position = max(position, end)
            unread[gap.reason] += fresh
    reasons = tuple(reason for reason, chars in unread.most_common() if chars)
    return Coverage(total - unread.total(), total, reasons)
