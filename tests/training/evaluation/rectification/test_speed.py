from app.rectification.steering import Control
from app.training.evaluation.rectification import speed
from app.training.evaluation.rectification.arms import Arm


def test_rates_are_measured_for_one_text_and_for_several(writers, prompts, monkeypatch):
    monkeypatch.setattr(speed, "_TOKENS", 4)
    steps = []
    found = speed.rates(
        writers,
        Arm("tilt", 9.0, Control("tilt", beta=9.0)),
        prompts,
        rounds=2,
        done=lambda: steps.append(1),
    )
    assert [rate.texts_at_once for rate in found] == list(speed.BATCHES)
    assert all(min(rate.without, rate.with_control, rate.ratio) > 0 for rate in found)
    assert len(steps) == speed.rounds_of(2)


def test_the_critic_is_timed_in_both_ways(writers):
    found = speed.prefix(writers.critic, rounds=3, length=12)
    assert found.tokens == 12
    assert min(found.incremental_ms, found.whole_prefix_ms, found.ratio) > 0
