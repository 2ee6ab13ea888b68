import math

import pytest

from app.training.corpus import answers
from app.training.corpus.answers import answer_samples
from app.training.corpus.datasets import Sample


class Writer:
    """Answers at once, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def answers(self, prompts):
        self.asked.extend(prompts)
        return [f"Sure: {text}" if "refused" not in text else "I'm sorry, no." for text in prompts]


@pytest.fixture
def writer(monkeypatch):
    made = Writer()
    monkeypatch.setattr(answers, "_Writer", lambda weights, seed: made)
    return made


PROMPTS = [
    *(Sample(f"harmless {number}", "s", 0.0, 0.0) for number in range(6)),
    *(Sample(f"harmful {number}", "s", 1.0, math.nan) for number in range(6)),
    Sample("harmful, refused", "s", 1.0, math.nan),
    Sample("harmless " + "long " * 100, "s", 0.0, 0.0),
]


def _made(tmp_path, **counts):
    return answer_samples(
        PROMPTS,
        cache=tmp_path / "kept" / "answers.jsonl",
        weights=tmp_path,
        seed=1,
        **{"harmless": 10, "harmful": 10, **counts},
    )


def test_an_answer_has_the_label_of_its_prompt_and_only_for_the_output(tmp_path, writer):
    made = _made(tmp_path)
    labels = {sample.context: sample.on_output for sample in made}
    assert labels["harmless 3"] == 0.0
    assert labels["harmful 3"] == 1.0
    assert all(math.isnan(sample.on_input) and sample.role == "response" for sample in made)


def test_a_refusal_of_a_harmful_prompt_is_left_out(tmp_path, writer):
    assert "harmful, refused" not in {sample.context for sample in _made(tmp_path)}


def test_long_prompts_are_not_answered(tmp_path, writer):
    assert max(len(sample.context) for sample in _made(tmp_path)) < 100


def test_kept_answers_are_not_written_again(tmp_path, writer):
    first = _made(tmp_path)
    asked = len(writer.asked)
    assert asked
    assert _made(tmp_path) == first
    assert len(writer.asked) == asked
