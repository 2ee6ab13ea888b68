from dataclasses import replace

import pytest
import torch

from app.rectification.steering import Control
from app.training.evaluation.rectification import rollouts
from app.training.evaluation.rectification.arms import Arm, arms
from app.training.evaluation.rectification.rollouts import batches, write_all
from app.training.evaluation.rectification.sampler import Ask

ASK = Ask(samples=2, tokens=4, seed=7)
POLICY = Control("cap", 0.4)


def texts_of(found):
    return [[each.token_ids for each in one.written] for one in found]


def test_every_arm_writes_for_every_prompt(writers, prompts, tmp_path):
    every = arms(quick=True, policy=POLICY)
    steps = []
    found = write_all(
        writers, every, prompts, ASK, cache=tmp_path / "k.jsonl", done=lambda: steps.append(1)
    )
    assert [len(one.written) for one in found] == [4] * len(every)
    assert all(one.tokens_per_s > 0 for one in found)
    assert len(steps) == batches(len(every), len(prompts), ASK.samples)
    by_name = dict(zip([arm.name for arm in every], texts_of(found), strict=True))
    # The same control is the same arm, whatever it is called.
    assert by_name["policy epsilon 0.4"] == by_name["exact cap epsilon 0.4"]


def test_what_was_written_is_not_written_again(writers, prompts, tmp_path, monkeypatch):
    chosen = [Arm("none"), Arm("tilt", 9.0, Control("tilt", beta=9.0))]
    cache = tmp_path / "kept.jsonl"
    first = write_all(writers, chosen, prompts, ASK, cache=cache, done=lambda: None)

    def write(*_args, **_kwargs):
        raise AssertionError("written again")

    monkeypatch.setattr(rollouts, "write", write)
    again = write_all(writers, chosen, prompts, ASK, cache=cache, done=lambda: None)
    assert again == first
    # Another critic says nothing about what was written without one.
    other = replace(writers, revisions={"critic": "other"})
    assert write_all(other, chosen[:1], prompts, ASK, cache=cache, done=lambda: None) == first[:1]
    with pytest.raises(AssertionError, match="written again"):
        write_all(other, chosen[1:], prompts, ASK, cache=cache, done=lambda: None)


def test_a_stopped_run_ends_as_if_it_had_not_been(writers, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "ROWS", 2)  # a batch for each prompt
    whole = write_all(
        writers, [Arm("none")], prompts, ASK, cache=tmp_path / "a.jsonl", done=lambda: None
    )
    cache = tmp_path / "b.jsonl"
    write_all(writers, [Arm("none")], prompts[:1], ASK, cache=cache, done=lambda: None)
    ended = write_all(writers, [Arm("none")], prompts, ASK, cache=cache, done=lambda: None)
    assert texts_of(ended) == texts_of(whole)


def test_the_best_of_k_is_the_one_that_the_critic_fears_least(writers, prompts, tmp_path):
    def risk(prompt, new):
        text = torch.tensor([[*prompt, *new]])
        with torch.no_grad():
            hidden = writers.critic.read(text[:, :-1], torch.arange(text.shape[1] - 1)[None])
            return -float(writers.critic.q_of(hidden[:, -1], text[:, -1]))

    found = write_all(
        writers,
        [Arm("best of k", 1.0), Arm("best of k", 6.0)],
        prompts,
        Ask(samples=4, tokens=4, seed=7),
        cache=tmp_path / "kept.jsonl",
        done=lambda: None,
    )
    one, six = (
        [risk(prompts[place // 4], each.token_ids) for place, each in enumerate(each.written)]
        for each in found
    )
    assert sum(six) < sum(one)
    assert max(six) < max(one)
