"""The whole way on a tiny set: rollouts, labels, fitting, calibration, a folder that loads."""

import gzip
import json
import random

import pytest
import torch

from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError
from app.inference.artefact import load_artefact
from app.rectification.critic_model import Critic
from app.training.critic import comparison, material, trainer
from app.training.critic.material import Recipe
from app.training.critic.rollouts import Amount
from app.training.critic.texts import part_of
from app.training.critic.trainer import Setting
from tests.tiny_model import WEIGHTS, write_model

TEST_PROMPT = "hello this pipe is in the test set"
TINY = Recipe(40, Amount(6, 5, 8), 40, Amount(6, 5, 8), 30, rows=48, epochs=1.0, batch_tokens=2000)


def _write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"lang": "en", "categories": [], **row}) + "\n")


def _texts(count, words):
    chance = random.Random(5)
    names = [*WEIGHTS]
    return [f"{chance.choice(names)} {words} {number}" for number in range(count)]


@pytest.fixture
def setting(tmp_path, language_model, monkeypatch):
    data = tmp_path / "data"
    prompts = [*_texts(60, "prompt"), TEST_PROMPT]
    plain = [{"text": text, "unsafe": 0, "role": "comment"} for text in prompts]
    _write(data / "train", "rtp_prompts", plain)
    chats = [
        {"text": text, "unsafe": number % 2, "role": "prompt"}
        for number, text in enumerate(_texts(60, "question"))
    ]
    _write(data / "train", "toxicchat_train", chats)
    answers = [
        {"text": text, "unsafe": number % 2, "role": "response", "context": "hello bomb"}
        for number, text in enumerate(_texts(40, "answer"))
    ]
    _write(data / "train", "saferlhf_test", answers)
    _write(data / "test", "decodingtrust_rtp", [{"text": TEST_PROMPT, "unsafe": 0}])
    _write(data / "dev", "few", [{"text": "a dev text", "unsafe": 1, "role": "prompt"}])
    names = ("rtp_prompts", "toxicchat_train", "saferlhf_test")
    manifest = [{"name": n, "licence": f"of {n}", "open_licence": n != names[0]} for n in names]
    (data / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setitem(material.RECIPES, "tiny", TINY)
    monkeypatch.setattr(trainer, "prepare_weights", lambda _: language_model)
    monkeypatch.setattr(trainer, "template_samples", lambda: iter(()))
    return Setting(
        data=data,
        weights=tmp_path / "weights",
        moderator=write_model(tmp_path / "moderator"),
        cache=tmp_path / "cache",
        recipe="tiny",
        layers=1,
        rank=4,
    )


def test_what_is_trained_is_a_critic_that_loads(setting, tmp_path, monkeypatch):
    out = tmp_path / "models" / "critic"
    facts = trainer.train(setting, out)
    critic = Critic.load(out)
    values = critic.q_values(critic.read(torch.tensor([[5, 6]]), torch.tensor([[0, 1]])))
    assert values.min() >= -1
    assert values.max() <= 0
    for plot in ("reliability.png", "training.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
    artefact = load_artefact(out)
    assert artefact.files.keys() == {"critic.safetensors", "tokenizer.json"}
    assert artefact.stages == (Stage.OUTPUT,)
    (category,) = artefact.categories
    assert 0 < artefact.threshold(Stage.OUTPUT, category, OperatingPoint.STRICT) < 1
    rows = {source.name: source.rows for source in artefact.sources}
    assert rows.keys() == {"rtp_prompts", "toxicchat_train", "saferlhf_test"}
    assert rows["toxicchat_train"] == TINY.answered
    card = json.loads((out / "card.json").read_text("utf-8"))
    assert card["teacher"] == {"model": "moderator-tiny", "unsafe_from": "strict"}
    texts = card["training"]["texts"]
    held_out = texts["measure_continuations"] + texts["measure_answers"]
    assert facts["held_out"]["texts"] == held_out
    assert facts["int8"]["mean_difference"] < 0.02
    weights = (out / "critic.safetensors").read_bytes()

    # Once more: nothing is written, labelled or fitted again, and the numbers are the same.
    monkeypatch.setattr(trainer, "LanguageModelAuthor", None)
    assert trainer.train(setting, out) == facts
    assert (out / "critic.safetensors").read_bytes() == weights


def test_test_prompts_and_held_out_prompts_teach_nothing(setting):
    ready = trainer.prepare(setting)
    layout = material.Layout(trainer.load_tokenizer(ready.folder))
    prompts = {
        part: {layout.text(text.ids[: text.first]) for text in texts if text.kind == "continuation"}
        for part, texts in ready.material.parts.items()
    }
    assert not any(TEST_PROMPT in prompt for some in prompts.values() for prompt in some)
    assert prompts["train"]
    assert not prompts["train"] & (prompts["calibration"] | prompts["measure"])
    assert all(text.kind != "reading" for text in ready.material.parts["measure"])
    for part, some in prompts.items():
        assert all(part_of(prompt.strip()) == part for prompt in some)


def test_without_its_licence_a_set_gives_no_prompts(setting):
    open_only = Setting(
        **{name: getattr(setting, name) for name in setting.__slots__} | {"licences": "open"}
    )
    kinds = {text.kind for text in trainer.prepare(open_only).material.parts["train"]}
    assert kinds == {"answer", "reading"}


def test_another_teacher_is_another_run(setting):
    first = trainer.prepare(setting)
    write_model(setting.moderator, revision="next")
    second = trainer.prepare(setting)
    assert first.run("mc").folder == first.run("mc").folder
    assert first.run("mc").folder != second.run("mc").folder


def test_both_ways_are_compared_on_the_same_texts(setting, capsys):
    found = comparison.compare(setting, epochs=0.5)
    assert found.keys() == {"mc", "sarsa"}
    assert "| sarsa |" in capsys.readouterr().out


def test_an_unknown_recipe_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing"):
        Setting(data=tmp_path, weights=tmp_path, moderator=tmp_path, recipe="nothing").sizes  # noqa: B018 - raises
