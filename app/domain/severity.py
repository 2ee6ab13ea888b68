"""How grave a toxic text is, from 0 to 3: how many operating points its score reaches.

Pure. Scores are calibrated, so a severity means the same in every detector.
"""

from __future__ import annotations

from typing import Final

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import Detection, Detector, OperatingPoint

TOXICITY_AXES: Final[tuple[Category, ...]] = (
    Category.HATE,
    Category.HARASSMENT,
    Category.THREAT,
    Category.SEXUAL_CONTENT,
    Category.SELF_HARM,
    Category.VIOLENCE,
)
"""The categories of toxic language: OpenAI's categories without their sub-categories."""


def severity(detection: Detection, detector: Detector, stage: Stage) -> int:
    """0 below the detector's strict threshold, 1 from strict, 2 from balanced, 3 from loose on."""
    return sum(
        detection.score >= detector.threshold(stage, detection.category, point)
        for point in OperatingPoint
    )
