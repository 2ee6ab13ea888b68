import pytest

from app.rectification.steering import Control
from app.training.evaluation.rectification.arms import CRITICAL, OURS, arms


@pytest.mark.parametrize("quick", [True, False])
def test_every_arm_has_a_name_of_its_own_and_none_is_first(quick):
    found = arms(quick=quick, policy=Control("tilt_cap", 0.2, 20.0, gate=0.1))
    names = [arm.name for arm in found]
    assert names[0] == "none"
    assert len(set(names)) == len(names)
    assert all(arm.method in CRITICAL for arm in found if arm.control)
    assert {arm.method for arm in found} >= OURS
    assert {"bad words", "exact cap epsilon 0.4", "gedi omega 10", "best of 4"} < set(names)


def test_a_quick_run_has_every_method_and_fewer_arms():
    some, every = arms(quick=True), arms(quick=False)
    assert {arm.method for arm in some} == {arm.method for arm in every}
    assert len(some) < len(every)


def test_strengths_go_up():
    found = arms(quick=False)
    for method in {arm.method for arm in found}:
        strengths = [arm.strength for arm in found if arm.method == method]
        assert strengths == sorted(strengths)
