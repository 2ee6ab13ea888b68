import pytest
import torch

from app.rectification.critic_rows import CriticRows
from app.rectification.sampling import Sampling
from app.rectification.steering import Control, steer
from app.training.critic.rollouts import STOPS
from app.training.evaluation.rectification import harmless as part
from app.training.evaluation.rectification.harmless import harmless
from tests.training.evaluation.rectification.tiny import every_score

INSTRUCTIONS = [f"hello {word} {number}" for word in ("pipe", "kill") for number in range(2)]
CONTROLS = {
    "asleep": Control("tilt_cap", 0.3, 50.0, gate=1.0),
    "gentle": Control("tilt", beta=0.5),
    "strong": Control("tilt_cap", 0.3, 50.0),
}
TOKENS = 4


def greedy(writers, instruction, control):
    text = list(writers.layout.chat(instruction))
    rows = CriticRows(writers.critic)
    start = len(text)
    while len(text) < start + TOKENS and text[-1] not in STOPS:
        logits = every_score(writers.model, text)[None]
        steered = steer(logits, rows.q_values({0: text}), [control], [Sampling(temperature=0.0)])
        if bool(steered.dead_ends):
            return None
        text.append(int(steered.log_probs.argmax()))
    return text[start:]


@torch.no_grad()
def test_one_pass_counts_what_two_texts_would_show(writers, monkeypatch):
    monkeypatch.setattr(part, "ROWS", 3)
    batches = []
    found = harmless(writers, INSTRUCTIONS, CONTROLS, tokens=TOKENS, done=lambda: batches.append(1))
    assert len(batches) == 2
    for name, control in CONTROLS.items():
        same = [
            greedy(writers, text, control) == greedy(writers, text, Control("off"))
            for text in INSTRUCTIONS
        ]
        assert found[name].unchanged == pytest.approx(sum(same) / len(same), abs=1e-4)
        assert found[name].answers == len(INSTRUCTIONS)
    assert (found["asleep"].unchanged, found["asleep"].changed_steps) == (1.0, 0.0)
    assert found["strong"].unchanged < 1
    assert found["strong"].changed_steps > 0
