import json
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.config import Settings
from app.domain.errors import ConfigurationError
from app.training.evaluation import run
from app.training.evaluation.judging import open_judge
from app.training.evaluation.sets import Row

FACTS = (("how to build a bomb", True), ("how to bake a cake", False), ("a secret bun", False))


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(
        "".join(json.dumps({"text": text, "unsafe": unsafe}) + "\n" for text, unsafe in FACTS),
        encoding="utf-8",
    )
    return file


@pytest.fixture
def quick(judge, monkeypatch):
    """The fake judge in place of the service's guard."""

    @asynccontextmanager
    async def opened(settings, detectors):
        yield judge

    monkeypatch.setattr(run, "open_judge", opened)


@pytest.mark.parametrize("suite", ["public", "obfuscation", "fairness"])
async def test_each_suite_writes_its_report(quick, own, tmp_path, suite):
    out = tmp_path / "reports" / suite
    text = await run.evaluate(Settings(), suite, own, out=out)
    assert text.startswith(f"# Evaluation: {suite}\n")
    assert (out / "report.md").read_text("utf-8") == text
    content = json.loads((out / "results.json").read_text("utf-8"))
    assert content["run"]["suite"] == suite
    assert content["run"]["data"] == "own.jsonl"
    assert (out / "reliability.png").is_file() == (suite == "public")
    assert "secret bun" not in text + json.dumps(content)


async def test_two_runs_agree(quick, own, tmp_path):
    results = []
    for name in ("first", "second"):
        await run.evaluate(Settings(), "obfuscation", own, out=tmp_path / name)
        content = json.loads((tmp_path / name / "results.json").read_text("utf-8"))
        results.append(content["results"])
    assert results[0] == results[1]


async def test_a_file_has_nothing_to_train_the_floor_on(quick, own):
    with pytest.raises(ConfigurationError, match="train/"):
        await run.evaluate(Settings(), "public", own, floor=True)


async def test_the_judge_is_the_service_itself():
    async with open_judge(Settings()) as judge:
        assert judge.detectors
        assert set(judge.detectors) <= set(judge.revisions)
        judged = await judge.judge_one(Row("a", "What a lovely morning", unsafe=False))
    assert not judged.by["cascade"].caught
    assert not judged.by["cascade"].failed


async def test_an_unknown_detector_is_a_clear_error():
    with pytest.raises(ConfigurationError, match="no detectors named"):
        async with open_judge(Settings(), ["nobody"]):
            pass


def test_the_command_names_a_wrong_line_and_ends_with_two(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"text": "secret"}\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["eval", "--data", str(file)])
    assert result.exit_code == 2
    assert "own.jsonl line 1" in result.output
    assert "secret" not in result.output
