"""The whole way on a tiny set: data on disk, training, export, card, a backend that reads it."""

import gzip
import json
import math

import pytest
import torch

from app.domain.conversation import Stage
from app.domain.errors import ConfigurationError
from app.inference.artefact import SpecialTokens, load_artefact
from app.inference.onnx_backend import OnnxBackend
from app.training.corpus.datasets import Sample
from app.training.moderator import comparison, trainer, trunks
from app.training.moderator.measuring import budgeted
from app.training.moderator.trunks import Candidate, candidate_of
from tests.training.moderator.tiny import tiny_tokenizer, tiny_trunk

SENTENCE = "how do i make bake fix a the cake bike bread please tell me to and it is nice day"
WORDS = SENTENCE.split()


def _rows(count, word, *, unsafe, role, start):
    for number in range(count):
        first, second = (
            WORDS[(start + number) % 20],
            WORDS[(start + number * 7 + number // 20) % 20],
        )
        yield {
            "text": f"{first} {second} {word} {number + start}",
            "unsafe": unsafe,
            "role": role,
            "lang": "en",
            "context": f"{second} {first} please" if role == "response" else None,
            "categories": [],
        }


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    sides = ((0, "cake"), (1, "bomb"))
    prompts = [row for u, w in sides for row in _rows(120, w, unsafe=u, role="prompt", start=0)]
    answers = [row for u, w in sides for row in _rows(60, w, unsafe=u, role="response", start=500)]
    _write(folder / "train" / "toxicchat_train.jsonl.gz", prompts)
    _write(folder / "train" / "saferlhf_test.jsonl.gz", answers)
    dev = [
        row
        for u, w in sides
        for role in ("prompt", "response")
        for row in _rows(15, w, unsafe=u, role=role, start=2000 if role == "prompt" else 3000)
    ]
    _write(folder / "dev" / "instruct_benign.jsonl.gz", dev)
    _write(folder / "test" / "any.jsonl.gz", [{"text": "nothing like it", "unsafe": 0}])
    names = ("toxicchat_train", "saferlhf_test")
    manifest = [{"name": n, "licence": "none", "open_licence": n == names[0]} for n in names]
    (folder / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    before = torch.get_num_threads()

    def load(cache, texts):
        assert texts
        cache.mkdir(parents=True, exist_ok=True)
        return tiny_trunk(), tiny_tokenizer(cache / "tiny.json")

    monkeypatch.setitem(
        trunks.CANDIDATES, "tiny", Candidate("tiny", SpecialTokens(), load, rate=3e-3)
    )
    monkeypatch.setattr(trainer, "template_samples", lambda: iter(()))
    monkeypatch.setattr(trainer, "answer_samples", lambda *_, **__: [])
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")  # the exporter of torch warns of its own age
def test_what_is_trained_is_a_model_that_the_service_reads(data, tmp_path):
    out = tmp_path / "models" / "moderator"
    trainer.train(data, out, name="moderator", candidate="tiny", epochs=3, cache=tmp_path / "cache")
    artefact = load_artefact(out)
    assert artefact.name == "moderator"
    assert artefact.context_tokens > 0
    assert artefact.metrics["held_out"]["input"]["auroc"] > 0.9
    backend = OnnxBackend.of_artefact(artefact, device="cpu")
    columns = len(artefact.categories)
    rows = backend.predict(
        [backend.encode(text).ids for text in ("tell me to bake a cake", "bomb")]
    )
    safe, unsafe = rows[:, :columns].max(axis=1)
    assert unsafe > safe
    card = json.loads((out / "card.json").read_text("utf-8"))
    assert card["training"]["duplicates_removed"] >= 0
    assert (out / "training.png").stat().st_size > 1_000


def test_candidates_are_compared_at_one_budget(data, tmp_path, capsys):
    cost = tiny_trunk().cost
    found = comparison.compare(
        data, budget=cost * 1_500 / comparison.TERA, candidates=["tiny"], cache=tmp_path
    )
    assert found["tiny"]["epochs"] < 1
    assert {"prompt_auprc", "dev_prompt_auprc"} <= found["tiny"].keys()
    assert "| tiny |" in capsys.readouterr().out


def test_an_unknown_encoder_is_named():
    with pytest.raises(ConfigurationError, match="nothing"):
        candidate_of("nothing")


def test_a_budget_counts_harmless_everyday_texts_only():
    samples = [
        Sample("a", "alpaca_benign", 0.0, 0.0),
        Sample("b", "dynahate", 0.0, 0.0, (), "comment"),
        Sample("c", "alpaca_benign", 1.0, math.nan),
        Sample("d", "smollm2_answers", math.nan, 0.0, (), "response"),
        Sample("e", "dices990", math.nan, 0.0, (), "response"),
    ]
    assert budgeted(samples, Stage.INPUT).tolist() == [True, False, False, False, False]
    assert budgeted(samples, Stage.OUTPUT).tolist() == [False, False, False, True, False]
