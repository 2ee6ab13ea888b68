import sys

import pytest

from app.training.evaluation.figures import figures
from app.training.evaluation.judging import Judgement
from app.training.evaluation.sets import Row, TestSet
from bench.peers import environment, run
from bench.peers.environment import PeerFailed, ask, prepare
from bench.peers.score import PEERS

GUARD = """
def detect(text):
    unsafe = "bomb" in text
    return {"label": "injection" if unsafe else "safe", "score": 0.9}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """This interpreter as a peer's environment, with a package of the peer's name."""
    (tmp_path / "guardify.py").write_text(GUARD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(environment, "prepare", lambda name: sys.executable)


def test_every_peer_has_requirements_and_a_scorer(pytestconfig):
    folder = pytestconfig.rootpath / "bench" / "peers" / "requirements"
    assert {*PEERS} == {*run.PEERS} == {path.stem for path in folder.glob("*.txt")}


def test_a_peer_answers_each_text_in_order(here):
    answers = ask("prompt-guardrail", ["a bun", "a\nbomb"])
    assert [each.caught for each in answers] == [False, True]
    assert [each.score for each in answers] == [pytest.approx(0.1), pytest.approx(0.9)]


def test_a_peer_that_ends_early_is_named_without_the_text(here):
    with pytest.raises(PeerFailed, match="nobody ended with 1 after 0 answers"):
        ask("nobody", ["secret"])


def test_a_peer_that_cannot_be_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_HERE", tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PeerFailed, match="nobody cannot be installed"):
        prepare("nobody")


def test_the_report_has_a_column_for_each_guard():
    rows = tuple(Row(str(n), "secret", unsafe=bool(n)) for n in range(2))
    test = TestSet("tiny", rows, 2)
    good = figures(rows, [Judgement(0.1, caught=False), Judgement(0.9, caught=True)])
    bad = figures(rows, [Judgement(0.9, caught=True), Judgement(0.1, caught=False)])
    found = {"cascade": [good], "prompt-guardrail": [bad]}
    text = run.report([test], found, {"cascade": 5.0, "prompt-guardrail": 0.25}, 2)
    assert "| prompt-guardrail | injection | 0.250 |" in text
    assert "| tiny | 2 | 1.000 | 0.000 |" in text
    assert "secret" not in text
