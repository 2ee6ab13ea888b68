"""Counting the stretches of text that the proxy replaced.

Knows nothing about how they are replaced: that is `domain/redaction.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.domain.conversation import Stage
from app.domain.detection import Detection
from app.domain.policy import Policy
from app.metrics import Metrics


def count_redactions(
    metrics: Metrics, stage: Stage, policy: Policy, detections: Iterable[Detection]
) -> None:
    """Count `detections`, each of which was replaced."""
    label = metrics.policy_label(policy.name)
    for detection in detections:
        metrics.redactions.labels(
            stage=stage.value, category=detection.category.value, policy=label
        ).inc()
