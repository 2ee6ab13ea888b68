from itertools import pairwise

import pytest
import torch

from app.training.critic.rollouts import STOPS
from app.training.evaluation.rectification.methods import TOP_P, Moved, Plain
from app.training.evaluation.rectification.reader import Reader
from app.training.evaluation.rectification.sampler import Ask, write
from tests.training.evaluation.rectification.tiny import every_score

ASK = Ask(samples=3, tokens=6, seed=5)


class Forced(Plain):
    """Says one token after another; where `dead` stands, there is no way on."""

    def __init__(self, script, dead=()):
        self.script = script
        self.dead = dead
        self.seen = []

    def moved(self, logits, texts):
        new = [text[-1] for text in texts]
        self.seen.append(logits.clone())
        chosen = [self.script.get(token, self.script[None]) for token in new]
        log_probs = torch.full_like(logits, -torch.inf)
        for row, tokens in enumerate(chosen):
            allowed = next(one for one in tokens if logits[row, one] > -torch.inf)
            log_probs[row, allowed] = 0.0
        return Moved(log_probs, torch.tensor([token in self.dead for token in new]))


def test_the_same_ask_writes_the_same_and_another_seed_does_not(writers, prompts):
    def texts(seed):
        ask = Ask(samples=3, tokens=6, seed=seed)
        written, seconds = write(Reader(writers.model), Plain(), prompts, ask)
        assert seconds > 0
        return [each.token_ids for each in written]

    assert texts(5) == texts(5)
    assert texts(5) != texts(6)
    assert len(texts(5)) == 6


def test_likelihoods_are_those_of_the_untouched_model(writers, prompts):
    written, _ = write(Reader(writers.model), Plain(), prompts, ASK)
    each = written[4]  # a continuation of the second prompt
    text, nll = list(prompts[1]), 0.0
    for token in each.token_ids:
        nll -= float(every_score(writers.model, text).log_softmax(-1)[token])
        text.append(token)
    assert each.nll == pytest.approx(nll, rel=1e-4)
    assert each.steps == len(each.token_ids)


def test_without_control_only_the_nucleus_moves_anything(writers, prompts):
    written, _ = write(Reader(writers.model), Plain(), prompts, ASK)
    for each in written:
        assert each.changed == 0
        assert 0 <= each.kl <= -each.steps * torch.log(torch.tensor(TOP_P)) + 1e-4
        assert (each.over, each.dead_ends, each.refused) == (0.0, 0, False)


def test_a_text_ends_with_its_stop_token(writers, prompts):
    method = Forced({None: [7], 7: [STOPS[0]]})
    written, _ = write(Reader(writers.model), method, prompts, ASK)
    assert all(each.token_ids == [7, STOPS[0]] for each in written)
    assert all(each.changed == 2 for each in written)


def test_a_dead_end_is_left_by_another_token(writers, prompts):
    method = Forced({None: [7, 8], 7: [7], 8: [STOPS[0]]}, dead={7})
    written, _ = write(Reader(writers.model), method, prompts[:1], Ask(1, 6, 5))
    (each,) = written
    assert each.token_ids == [8, STOPS[0]]
    assert (each.dead_ends, each.taken_back, each.steps, each.refused) == (1, 1, 3, False)


def test_a_text_without_a_way_on_is_refused_and_what_was_held_is_gone(writers, prompts):
    script = {None: [3], 3: [4], 4: [7], 7: [7]}
    method = Forced(script, dead={7})
    written, _ = write(Reader(writers.model), method, prompts[:1], Ask(1, 6, 5, rollback=0))
    (each,) = written
    assert each.refused
    assert each.token_ids == [3, 4, 7]  # nothing was held
    held = Forced({None: [7], 7: [7]}, dead={7, prompts[0][-1]})
    (each,), _ = write(Reader(writers.model), held, prompts[:1], Ask(1, 6, 5, rollback=2))
    assert each.refused
    assert each.token_ids == []


def test_what_led_to_a_dead_end_is_open_again_elsewhere(writers, prompts):
    method = Forced({None: [7, 8], 7: [7], 8: [9], 9: [STOPS[0]]}, dead={7})
    write(Reader(writers.model), method, prompts[:1], Ask(1, 6, 5))
    closed = [bool(logits[0, 7] == -torch.inf) for logits in method.seen]
    assert closed.count(True) == 1
    assert not closed[-1]
    assert all(not (one and other) for one, other in pairwise(closed))
