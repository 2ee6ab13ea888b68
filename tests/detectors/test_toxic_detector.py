from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from app.detectors.toxic_detector import ToxicDetector
from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import Detection, Gap, OperatingPoint, Scan, Unscanned
from app.domain.errors import ModelCorrupt, Overloaded
from app.inference.artefact import Artefact
from app.inference.states_mlp import StatesMlp

HATE, THREAT = Category.HATE, Category.THREAT
LAYERS, HIDDEN = 2, 3
POINTS = {OperatingPoint.STRICT: 0.2, OperatingPoint.BALANCED: 0.5, OperatingPoint.LOOSE: 0.9}


@dataclass(frozen=True)
class Said:
    token_ids: tuple[int, ...]
    start: int
    end: int


class FourLetters:
    """A prompt for every four letters; `!` has no token."""

    def encode(self, text):
        cuts = [
            Said(tuple(map(ord, text[start : start + 4])), start, min(start + 4, len(text)))
            for start in range(0, len(text), 4)
        ]
        gaps = tuple(
            Gap(index, index + 1, Unscanned.UNKNOWN_TOKEN)
            for index, letter in enumerate(text)
            if letter == "!"
        )
        return cuts, gaps


class Reader:
    """The states are high where an `x` is read; refuses a `?`."""

    def __init__(self):
        self.read_prompts = []

    async def read(self, token_ids):
        self.read_prompts.append(token_ids)
        if ord("?") in token_ids:
            raise Overloaded("no room")
        return np.full((LAYERS, HIDDEN), 5.0 if ord("x") in token_ids else -5.0, np.float32)


def arrays():
    """Two hidden layers; the second tells whether the states are high."""
    rising = np.asarray([-1.0, 1.0])
    return {
        "mean": np.zeros(6),
        "scale": np.ones(6),
        "weight.0": np.outer(rising, np.ones(6)),
        "bias.0": np.zeros(2),
        "gain.0": np.ones(2),
        "shift.0": np.zeros(2),
        "weight.1": np.eye(2),
        "bias.1": np.zeros(2),
        "gain.1": np.ones(2),
        "shift.1": np.zeros(2),
        "toxic.weight": rising[None],
        "toxic.bias": np.zeros(1),
        "category.weight": np.zeros((2, 2)),
        "category.bias": np.asarray([2.0, 2.0 + np.log(0.5)]),
        "calibration": np.asarray([6.0, 0.0, 1.0]),
    }


@pytest.fixture
def mlp(tmp_path):
    np.savez(tmp_path / "weights.npz", **arrays())
    return StatesMlp(tmp_path / "weights.npz")


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def detector(mlp, reader):
    points = {
        point: dict.fromkeys((HATE, THREAT), threshold) for point, threshold in POINTS.items()
    }
    artefact = Artefact(
        name="toxic_detector",
        revision="1",
        licence="MIT",
        folder=Path(),
        digest="abc",
        stages=(Stage.INPUT,),
        categories=(HATE, THREAT),
        window=4,
        overlap=0,
        thresholds={Stage.INPUT: points},
        files={},
        sources=(),
        metrics={},
    )
    return ToxicDetector(artefact, mlp, FourLetters(), reader)


async def test_the_window_that_is_toxic_is_found_with_its_categories(detector):
    (scan,) = await detector.detect(["fine words, x there"], Stage.INPUT)

    assert {(each.start, each.end) for each in scan.detections} == {(12, 16)}
    assert [each.category for each in scan.detections] == [HATE, THREAT]
    likeliest, other = (each.score for each in scan.detections)
    assert likeliest > 0.9
    assert other == pytest.approx(likeliest / 2)
    assert scan.detections[0] == Detection("toxic_detector", HATE, likeliest, 12, 16)


async def test_each_text_gets_its_own_answer_in_order(detector):
    scans = await detector.detect(["calm", "x", "", "ok!"], Stage.INPUT)

    assert [bool(scan.detections) for scan in scans] == [False, True, False, False]
    assert scans[3].gaps == (Gap(2, 3, Unscanned.UNKNOWN_TOKEN),)


async def test_an_output_is_reported_as_not_read(detector, reader):
    scans = await detector.detect(["an x", ""], Stage.OUTPUT)

    assert scans == [Scan(gaps=(Gap(0, 4, Unscanned.DETECTOR_FAILED),)), Scan()]
    assert reader.read_prompts == []


async def test_a_full_queue_is_passed_on(detector):
    with pytest.raises(Overloaded):
        await detector.detect(["?"], Stage.INPUT)


def test_thresholds_are_those_of_the_card(detector):
    assert detector.threshold(Stage.INPUT, HATE, OperatingPoint.BALANCED) == 0.5
    assert detector.threshold(Stage.OUTPUT, HATE, OperatingPoint.BALANCED) > 1
    assert detector.threshold(Stage.INPUT, Category.JAILBREAK, OperatingPoint.LOOSE) > 1
    assert not detector.reads_context


@pytest.mark.parametrize("missing", ["mean", "toxic.bias", "calibration", "bias.1"])
def test_a_file_without_its_arrays_is_refused(tmp_path, missing):
    kept = {name: value for name, value in arrays().items() if name != missing}
    np.savez(tmp_path / "weights.npz", **kept)
    with pytest.raises(ModelCorrupt):
        StatesMlp(tmp_path / "weights.npz")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"nothing")
    with pytest.raises(ModelCorrupt):
        StatesMlp(tmp_path / "weights.npz")
