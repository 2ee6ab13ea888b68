import sys

import pytest

from app.domain.errors import DetectorError
from app.training.critic.labels import Judge, Output
from app.training.evaluation.rectification import scorers
from app.training.evaluation.rectification.scorers import (
    ModeratorScorer,
    OutsideScorer,
    independent,
)
from tests.tiny_model import write_model

FAKE = """
import json, sys
from pathlib import Path
calls = Path(sys.argv[1])
for line in sys.stdin:
    text = json.loads(line)["text"]
    with calls.open("a") as file:
        file.write(text + "\\n")
    print(json.dumps({"score": min(1.0, len(text) / 10), "caught": False, "ms": 1.0}))
"""


@pytest.fixture
def outside(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE, "utf-8")
    command = [sys.executable, str(script), str(tmp_path / "calls")]
    return OutsideScorer(command, "fake", cache=tmp_path)


def test_an_outside_scorer_answers_in_order_and_is_asked_once(outside, tmp_path):
    outputs = [Output("hello"), Output(" "), Output("a pipe"), Output("hello")]
    assert outside.scores(outputs).tolist() == [0.5, 0.0, 0.6, 0.5]
    assert outside.scores(outputs[:2]).tolist() == [0.5, 0.0]
    assert (tmp_path / "calls").read_text("utf-8").splitlines() == ["hello", "a pipe"]


def test_an_outside_scorer_that_ends_early_shows_no_text(tmp_path):
    command = [sys.executable, "-c", "import sys; print(sys.stdin.read(), file=sys.stderr)"]
    with pytest.raises(DetectorError) as failed:
        OutsideScorer(command, "fake", cache=tmp_path).scores([Output("a secret")])
    assert "secret" not in str(failed.value)


def test_without_an_environment_there_is_no_independent_scorer(tmp_path, monkeypatch):
    monkeypatch.setattr(scorers, "shipped", lambda name: tmp_path / name)
    assert independent(tmp_path) is None
    python = tmp_path / "bench/peers/.venv/alt-profanity-check/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    found = independent(tmp_path)
    assert found is not None
    assert found.name == "alt-profanity-check"


def test_the_moderator_reads_a_continuation_alone_or_as_an_answer(tmp_path):
    judge = Judge(write_model(tmp_path / "moderator"), cache=tmp_path)
    outputs = [Output("hello", "kill"), Output("bomb", "hello")]
    alone = ModeratorScorer(judge).scores(outputs)
    inside = ModeratorScorer(judge, in_context=True).scores(outputs)
    assert alone[0] < 0.1
    assert inside[0] > 0.5
    assert alone[1] == pytest.approx(inside[1])
