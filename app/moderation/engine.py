"""The engine: one conversation, one stage, one policy in; one verdict out.

Knows nothing about tokens, batches, HTTP or wire formats. The conversation is read once, every
detector scans all of the reading, the policy decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog

from app.domain.conversation import Conversation, Stage
from app.domain.detection import Detection, Detector, Scan, Unscanned
from app.domain.errors import ConfigurationError, DetectorError, DetectorTimeout, Overloaded
from app.domain.policy import Action, Policy, StagePolicy
from app.domain.verdict import Coverage, DetectorStatus, Outcome, Verdict, decide
from app.metrics import Metrics
from app.moderation.cache import ScanCache, scan_key
from app.moderation.reading import Reading, read

_log = structlog.get_logger(__name__)


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
        reading = await read(conversation, stage, policy.stage(stage))
        outcomes = await self._consult_all(reading, stage, policy.stage(stage))
        media = (Unscanned.MEDIA,) if reading.unread[Unscanned.MEDIA] else ()
        verdict = decide(outcomes, policy, stage, media)
        if endpoint is not None:
            self._count(verdict, endpoint, self._clock() - begun)
        return verdict

    async def outcomes(
        self, conversation: Conversation, stage: Stage, policy: Policy
    ) -> list[Outcome]:
        """What each detector of the policy found, in order: what `moderate` decides on."""
        reading = await read(conversation, stage, policy.stage(stage))
        return await self._consult_all(reading, stage, policy.stage(stage))

    async def _consult_all(
        self, reading: Reading, stage: Stage, rules: StagePolicy
    ) -> list[Outcome]:
        """The rules first, as they cost microseconds; then all models at once.

        Only the models read the history: a phrase does not run over from one turn to the next.
        """
        outcomes: dict[str, Outcome] = {}
        models: list[Detector] = []
        for name in rules.detectors:
            detector = self._detector(name)
            if name in self._cached:
                models.append(detector)
            else:
                outcomes[name] = await self._consult(detector, reading, stage, rules)
        whole = reading.with_history()
        if len(models) == 1:
            only = models[0]
            outcomes[only.name] = await self._consult(only, whole, stage, rules)
        elif models:
            answers = await asyncio.gather(
                *(self._consult(model, whole, stage, rules) for model in models)
            )
            outcomes.update({answer.detector.name: answer for answer in answers})
        return [outcomes[name] for name in rules.detectors]

    def _detector(self, name: str) -> Detector:
        try:
            return self.detectors[name]
        except KeyError:
            raise ConfigurationError(f"there is no detector named {name!r}") from None

    async def _consult(
        self, detector: Detector, reading: Reading, stage: Stage, rules: StagePolicy
    ) -> Outcome:
        """One detector's answer for all parts; a failure becomes a status."""
        begun = self._clock()
        status, cached = DetectorStatus.OK, False
        detections: tuple[Detection, ...] = ()
        coverage = Coverage(0, reading.total, (Unscanned.DETECTOR_FAILED,))
        try:
            async with asyncio.timeout(rules.deadline_ms / 1_000):
                context = reading.context if detector.reads_context else ""
                scans, cached = await self._scan(detector, reading.distinct(), stage, context)
            detections = reading.located(scans)
            coverage = reading.covered(scans)
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
        self, detector: Detector, texts: Sequence[str], stage: Stage, context: str
    ) -> tuple[dict[str, Scan], bool]:
        """A scan for each text, and whether all of them came from the cache."""
        known: dict[str, Scan] = {}
        keys: dict[str, str] = {}
        cache = self._cache if detector.name in self._cached else None
        if cache is not None and texts:
            keys = {text: scan_key(detector, stage, text, context) for text in texts}
            found = await cache.get(list(keys.values()))
            known = {t: scan for t, scan in zip(texts, found, strict=True) if scan is not None}
            requests = self._metrics.cache_requests
            requests.labels(cache=cache.name, result="hit").inc(len(known))
            requests.labels(cache=cache.name, result="miss").inc(len(texts) - len(known))
        missing = [text for text in texts if text not in known]
        if not missing:
            return known, bool(texts)
        scans = await detector.detect(missing, stage, context)
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
