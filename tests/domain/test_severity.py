from __future__ import annotations

import pytest

from app.domain.categories import OPENAI_CATEGORIES, Category
from app.domain.conversation import Stage
from app.domain.detection import Detection, OperatingPoint
from app.domain.severity import TOXICITY_AXES, severity
from tests.fakes import PhraseDetector

POINTS = {OperatingPoint.STRICT: 0.2, OperatingPoint.BALANCED: 0.5, OperatingPoint.LOOSE: 0.8}


class PointDetector(PhraseDetector):
    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        return POINTS[point] + 0.1 * (stage is Stage.OUTPUT) + 0.05 * (category is Category.HATE)


@pytest.mark.parametrize(
    ("score", "grade"),
    [(0.0, 0), (0.19, 0), (0.2, 1), (0.49, 1), (0.5, 2), (0.79, 2), (0.8, 3), (1.0, 3)],
)
def test_each_operating_point_that_is_reached_counts(score: float, grade: int) -> None:
    found = Detection("keywords", Category.THREAT, score, 0, 1)
    assert severity(found, PointDetector(), Stage.INPUT) == grade


@pytest.mark.parametrize(
    ("category", "stage", "grade"),
    [
        (Category.THREAT, Stage.INPUT, 2),
        (Category.HATE, Stage.INPUT, 1),
        (Category.THREAT, Stage.OUTPUT, 1),
    ],
)
def test_thresholds_are_those_of_stage_and_category(
    category: Category, stage: Stage, grade: int
) -> None:
    found = Detection("keywords", category, 0.52, 0, 1)
    assert severity(found, PointDetector(), stage) == grade


def test_the_axes_are_categories_that_openai_names() -> None:
    members = {one for groups in OPENAI_CATEGORIES.values() for group in groups for one in group}
    assert set(TOXICITY_AXES) <= members
