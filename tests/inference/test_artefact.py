import hashlib
import json

import pytest

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError, ModelCorrupt, ModelMissing
from app.inference.artefact import load_artefact


def card_for(content: bytes) -> dict:
    points = {"strict": 0.2, "balanced": 0.5, "loose": 0.9}
    return {
        "name": "tiny",
        "revision": "1",
        "licence": "MIT",
        "stages": ["input", "output"],
        "categories": ["hate", "threat"],
        "window": 8,
        "overlap": 2,
        "thresholds": {"input": points, "output": {**points, "balanced": 0.6}},
        "files": {"model.onnx": hashlib.sha256(content).hexdigest()},
        "sources": [{"name": "own", "licence": "Apache-2.0", "open_licence": True, "rows": 3}],
        "metrics": {},
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"weights")
    write(tmp_path, card_for(b"weights"))
    return tmp_path


def write(folder, card):
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


def test_reads_the_card(folder):
    artefact = load_artefact(folder)
    assert artefact.categories == (Category.HATE, Category.THREAT)
    assert artefact.outputs == 4
    assert artefact.path("model.onnx") == folder / "model.onnx"
    assert artefact.threshold(Stage.OUTPUT, Category.HATE, OperatingPoint.BALANCED) == 0.6
    assert artefact.threshold(Stage.INPUT, Category.HATE, OperatingPoint.LOOSE) == 0.9


def test_a_category_that_the_model_does_not_know_is_never_found(folder):
    artefact = load_artefact(folder)
    assert artefact.threshold(Stage.INPUT, Category.SECRETS, OperatingPoint.STRICT) > 1


def test_a_changed_file_is_refused(folder):
    (folder / "model.onnx").write_bytes(b"weighty")
    with pytest.raises(ModelCorrupt, match=r"model\.onnx"):
        load_artefact(folder)


def test_a_missing_model_says_what_to_run(folder):
    with pytest.raises(ModelMissing, match="sluiceway train other"):
        load_artefact(folder / "other")
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelMissing, match="sluiceway train"):
        load_artefact(folder)


@pytest.mark.parametrize("broken", ["{", "[]", "{}"])
def test_a_file_that_is_no_card_is_a_configuration_error(folder, broken):
    (folder / "card.json").write_text(broken, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="not a model card"):
        load_artefact(folder)


def test_a_card_cannot_point_out_of_its_folder(folder):
    card = card_for(b"weights")
    card["files"] = {"../model.onnx": card["files"]["model.onnx"]}
    write(folder, card)
    with pytest.raises(ConfigurationError, match="outside"):
        load_artefact(folder)


def test_a_file_that_the_card_does_not_name_is_not_handed_out(folder):
    with pytest.raises(ConfigurationError, match="names no file"):
        load_artefact(folder).path("card.json")


def test_the_digest_changes_with_a_file_and_with_a_threshold(folder):
    first = load_artefact(folder).digest
    (folder / "model.onnx").write_bytes(b"better")
    write(folder, card_for(b"better"))
    second = load_artefact(folder).digest
    card = card_for(b"better")
    card["thresholds"]["input"]["balanced"] = 0.55
    write(folder, card)
    assert len({first, second, load_artefact(folder).digest}) == 3
