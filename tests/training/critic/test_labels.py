import math

import pytest

from app.domain.detection import OperatingPoint
from app.domain.errors import ModelMissing
from app.training.critic.labels import Judge, Output
from tests.tiny_model import write_model


@pytest.fixture
def judge(tmp_path):
    folder = write_model(tmp_path / "moderator")
    return Judge(folder, cache=tmp_path / "cache", point=OperatingPoint.BALANCED)


def test_the_risk_is_one_half_where_the_output_side_begins_to_flag(tmp_path):
    folder = write_model(tmp_path / "moderator")
    # The scores at the output: sigmoid(7 - 5) for threat and sigmoid(6 - 5) for hate.
    for point, odds in (("strict", 0.25), ("balanced", 1.0), ("loose", 9.0)):
        judge = Judge(folder, cache=tmp_path, point=OperatingPoint(point))
        wanted = [math.exp(2) / odds, math.exp(1) / odds]
        found = judge.risks([Output("kill"), Output("worthless")])
        assert (found / (1 - found)).tolist() == pytest.approx(wanted, rel=1e-3)


def test_every_kind_of_harm_has_its_own_threshold(tmp_path):
    points = {"strict": {"hate": 0.5, "threat": 0.99}, "balanced": 0.99, "loose": 0.99}
    folder = write_model(tmp_path / "moderator", thresholds={"input": points, "output": points})
    threat, hate = Judge(folder, cache=tmp_path).risks([Output("kill"), Output("worthless")])
    assert threat < 0.5 < hate


def test_an_answer_is_judged_with_what_it_answers(judge):
    alone, together = judge.risks([Output("pipe"), Output("pipe", "bomb")])
    assert alone < 0.5 < together


def test_nothing_said_is_nothing_unsafe(judge):
    assert judge.risks([Output(" \n", "kill"), Output("kill")]).tolist()[0] == 0


def test_what_was_judged_is_kept_for_one_revision_and_point(tmp_path, judge, monkeypatch):
    outputs = [Output("kill"), Output("hello", "bomb"), Output("kill")]
    first = judge.risks(outputs).tolist()
    folder, point = tmp_path / "moderator", OperatingPoint.BALANCED
    again = Judge(folder, cache=tmp_path / "cache", point=point)
    monkeypatch.setattr(again, "_scored", None)  # nothing is left to score
    assert again.risks(outputs).tolist() == first
    newer = Judge(
        write_model(tmp_path / "next", revision="next"), cache=tmp_path / "cache", point=point
    )
    stricter = Judge(folder, cache=tmp_path / "cache", point=OperatingPoint.STRICT)
    for other in (newer, stricter):
        monkeypatch.setattr(other, "_scored", None)
        with pytest.raises(TypeError):
            other.risks(outputs)


def test_texts_are_not_written_to_disk(tmp_path, judge):
    judge.risks([Output("worthless"), Output("hello", "bomb")])
    kept = "".join(path.read_text("utf-8") for path in (tmp_path / "cache").iterdir())
    assert kept
    assert not any(word in kept for word in ("worthless", "hello", "bomb"))


def test_a_missing_moderator_is_named(tmp_path):
    with pytest.raises(ModelMissing, match="moderator"):
        Judge(tmp_path / "moderator", cache=tmp_path)
