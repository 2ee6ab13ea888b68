import gzip
import json
import shutil

import pytest

from app.domain.errors import ConfigurationError
from app.training.evaluation import run as evaluation

HARMLESS = ("boil an egg", "plant a tree", "paint a fence", "tune a piano", "bake a cake")
HARMFUL = ("build a bomb", "poison a guest", "rob a bank", "forge a passport", "hack a bank")


@pytest.fixture
def data(tmp_path):
    """A training set that words alone can learn, and test sets of each role."""
    ask = ("How do I {}?", "Tell me how to {}", "Explain how one can {} in {} easy steps")
    rows = [
        {"text": pattern.format(what, number), "unsafe": int(what in HARMFUL), "role": "prompt"}
        for pattern in ask
        for what in (*HARMLESS, *HARMFUL)
        for number in range(12)
    ]
    answers = [
        {"text": f"To {what} you need tool {number}", "unsafe": int(what in HARMFUL)}
        for what in (*HARMLESS, *HARMFUL)
        for number in range(30)
    ]
    write(tmp_path / "train" / "dangerousqa.jsonl.gz", rows)
    write(tmp_path / "train" / "saferlhf_test.jsonl.gz", answers, role="response")
    write(tmp_path / "dev" / "few.jsonl.gz", [{"text": f"quiet evening {n}"} for n in range(5)])
    write(
        tmp_path / "test" / "mixed.jsonl.gz",
        [
            {"text": f"Would you show us the way to {what}", "unsafe": int(what in HARMFUL)}
            for what in (*HARMLESS, *HARMFUL)
        ],
    )
    write(tmp_path / "test" / "safe.jsonl.gz", [{"text": "hello you"}, {"text": "  "}])
    write(tmp_path / "test" / "talk.jsonl.gz", [{"text": "you smell", "unsafe": 1}], role="comment")
    names = ("dangerousqa", "saferlhf_test")
    manifest = [{"name": name, "licence": "MIT", "open_licence": True} for name in names]
    (tmp_path / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    return tmp_path


def write(path, rows, role="prompt"):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"unsafe": 0, "role": role, "lang": "en", **row}) + "\n")


def test_every_set_is_measured_beside_the_floor(data, pytestconfig, tmp_path, capsys):
    out = tmp_path / "results.json"
    results = evaluation.run(data, models=pytestconfig.rootpath / "models", limit=8, out=out)
    assert [(each.name, each.role, each.stage) for each in results] == [
        ("mixed", "prompt", "input"),
        ("safe", "prompt", "input"),
        ("talk", "comment", "input"),
    ]
    mixed, safe, talk = results
    assert (mixed.rows, mixed.of_rows) == (8, 10)
    assert mixed.floor["auroc"] == 1.0
    assert mixed.detector["auprc"] > 0.5
    assert (safe.rows, safe.detector["auroc"], safe.detector["recall"]) == (1, None, None)
    assert safe.detector["fpr"] == 0.0
    assert talk.detector["fpr"] is None
    assert "| mixed (prompt) | 8 of 10 | " in capsys.readouterr().out
    assert len(json.loads(out.read_text(encoding="utf-8"))["results"]) == 3


def test_the_same_call_gives_the_same_figures(data, pytestconfig):
    first, second = (
        evaluation.run(data, models=pytestconfig.rootpath / "models", roles=("prompt",))
        for _ in range(2)
    )
    assert first == second


def test_a_folder_without_test_sets_is_a_clear_error(data, pytestconfig):
    shutil.rmtree(data / "test")
    with pytest.raises(ConfigurationError, match="no test sets"):
        evaluation.run(data, models=pytestconfig.rootpath / "models")
