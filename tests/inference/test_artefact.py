import hashlib
import json

import pytest

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError, ModelCorrupt, ModelMissing
from app.inference.artefact import SpecialTokens, load_artefact


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


def test_a_threshold_may_be_said_for_each_category(folder):
    card = card_for(b"weights")
    card["thresholds"]["input"]["balanced"] = {"hate": 0.4, "threat": 0.7}
    write(folder, card)
    artefact = load_artefact(folder)
    found = [
        artefact.threshold(Stage.INPUT, category, OperatingPoint.BALANCED)
        for category in (Category.HATE, Category.THREAT)
    ]
    assert found == [0.4, 0.7]
    assert artefact.threshold(Stage.INPUT, Category.THREAT, OperatingPoint.STRICT) == 0.2


def test_a_card_that_says_nothing_of_context_is_that_of_a_bert_without(folder):
    artefact = load_artefact(folder)
    assert (artefact.context_tokens, artefact.max_tokens) == (0, 8)
    assert artefact.special_tokens == SpecialTokens("[CLS]", "[SEP]", "[SEP]", "[PAD]", "[UNK]")


def test_a_row_has_room_for_context_and_separator(folder):
    special = {"start": "<s>", "separator": "</s>", "end": "</s>", "padding": "<pad>"}
    card = {**card_for(b"weights"), "context_tokens": 64}
    write(folder, {**card, "special_tokens": {**special, "unknown": None}})
    artefact = load_artefact(folder)
    assert (artefact.context_tokens, artefact.max_tokens) == (64, 8 + 64 + 1)
    assert artefact.special_tokens == SpecialTokens("<s>", "</s>", "</s>", "<pad>", None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"context_tokens": -1}, "context_tokens"),
        ({"overlap": 8}, "overlap < window"),
        ({"special_tokens": {"begin": "<s>"}}, "begin"),
        ({"special_tokens": {"start": None}}, "start"),
        ({"stages": []}, "stage"),
        ({"categories": []}, "categor"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(folder, change, complaint):
    write(folder, {**card_for(b"weights"), **change})
    with pytest.raises(ConfigurationError, match=complaint):
        load_artefact(folder)


@pytest.mark.parametrize(
    ("points", "complaint"),
    [
        ({"strict": 0.6, "balanced": 0.5, "loose": 0.9}, "hate must rise"),
        ({"strict": 0.0, "balanced": 0.5, "loose": 0.9}, "hate must rise"),
        ({"strict": float("nan"), "balanced": 0.5, "loose": 0.9}, "hate must rise"),
        ({"strict": 0.2, "balanced": 0.5}, "loose"),
        ({"strict": 0.2, "balanced": {"hate": 0.5}, "loose": 0.9}, "balanced.*threat"),
        ({"strict": {"hate": 0.1, "threat": 0.1, "love": 1}, "balanced": 1, "loose": 1}, "love"),
        ({"strict": "low", "balanced": 0.5, "loose": 0.9}, "not a model card"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(folder, points, complaint):
    card = card_for(b"weights")
    card["thresholds"]["output"] = points
    write(folder, card)
    with pytest.raises(ConfigurationError, match=complaint):
        load_artefact(folder)


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
