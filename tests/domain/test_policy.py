from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import Detection, OperatingPoint
from app.domain.errors import PolicyLoosened
from app.domain.policy import (
    Action,
    FailMode,
    Policy,
    RectificationMode,
    RectificationPolicy,
    Rule,
    StagePolicy,
    StreamMode,
    StreamPolicy,
    tighten,
)
from app.domain.verdict import Coverage, DetectorStatus, Outcome, decide, resolve_threshold
from tests.fakes import PhraseDetector

CATEGORIES = (Category.HATE, Category.THREAT, Category.PERSONAL_DATA, Category.PROFANITY)
NAMES = ("keywords", "pii", "prompt_detector")


@dataclass
class PointDetector(PhraseDetector):
    """Has thresholds of its own, different for each stage."""

    strict: float = 0.3

    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        steps = {OperatingPoint.STRICT: 0.0, OperatingPoint.BALANCED: 0.2, OperatingPoint.LOOSE: 1}
        return min(1.0, self.strict + steps[point] + (0.05 if stage is Stage.OUTPUT else 0.0))


DETECTORS = {
    name: PointDetector(name=name, strict=strict)
    for name, strict in zip(NAMES, (0.2, 0.35, 0.5), strict=True)
}


def resolved(policy: Policy) -> dict[Stage, dict[Category, float]]:
    """A slow reference of what the store tells."""
    table: dict[Stage, dict[Category, float]] = {}
    for stage in Stage:
        rules = policy.stage(stage)
        table[stage] = {
            category: min(
                resolve_threshold(rules.rule(category), DETECTORS[name], stage, category)
                for name in rules.detectors
            )
            for category in Category
        }
    return table


def policy_of(**changes: object) -> Policy:
    stage = StagePolicy(NAMES[:2], Rule(OperatingPoint.BALANCED, Action.BLOCK))
    return replace(Policy("default", "0" * 64, stage, stage), **changes)


def tightened(policy: Policy, **wishes: object) -> Policy:
    return tighten(policy, resolved=resolved(policy), **wishes)


def test_actions_grow_in_severity() -> None:
    order = [Action.ALLOW, Action.FLAG, Action.REDACT, Action.BLOCK]
    assert all(mild.severity < severe.severity for mild, severe in pairwise(order))
    assert set(order) == set(Action)


def test_a_category_without_a_rule_follows_the_default() -> None:
    special = Rule(0.9, Action.REDACT)
    stage = StagePolicy(NAMES, Rule(0.5, Action.BLOCK), {Category.HATE: special})
    assert stage.rule(Category.HATE) is special
    assert stage.rule(Category.THREAT) is stage.default


def test_stages_are_told_apart() -> None:
    policy = policy_of(output=StagePolicy(("pii",), Rule(0.1, Action.FLAG)))
    assert policy.stage(Stage.INPUT) is policy.input
    assert policy.stage(Stage.OUTPUT) is policy.output


def test_defaults_are_the_safe_ones() -> None:
    policy = policy_of()
    assert policy.enforce
    assert {policy.input.fail, policy.output.fail, policy.stream.fail_tail} == {FailMode.CLOSED}
    assert policy.stream.mode is StreamMode.HOLD


def test_a_policy_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        policy_of().enforce = False  # type: ignore[misc]


def test_no_wishes_change_nothing() -> None:
    policy = policy_of()
    assert tightened(policy) == policy


# PointDetector: keywords 0.2 + 0.2 at the input and 0.05 more at the output; pii is higher.
@pytest.mark.parametrize(("wish", "accepted"), [(0.0, True), (0.4, True), (0.41, False)])
def test_a_threshold_may_go_down_to_the_lowest_demanded_and_not_beyond(
    wish: float, accepted: bool
) -> None:
    policy = policy_of()
    if accepted:
        changed = tightened(policy, thresholds={Category.HATE: wish})
        for stage in Stage:
            assert changed.stage(stage).rule(Category.HATE) == Rule(wish, Action.BLOCK)
            assert changed.stage(stage).rule(Category.THREAT) == policy.input.default
        return
    with pytest.raises(PolicyLoosened) as refused:
        tightened(policy, thresholds={Category.HATE: wish})
    assert refused.value.param == "thresholds.hate"


def test_a_threshold_that_loosens_only_one_stage_is_refused() -> None:
    strict = StagePolicy(("keywords",), Rule(0.1, Action.BLOCK))
    loose = StagePolicy(("keywords",), Rule(0.9, Action.BLOCK))
    for policy in (policy_of(input=strict, output=loose), policy_of(input=loose, output=strict)):
        with pytest.raises(PolicyLoosened):
            tightened(policy, thresholds={Category.HATE: 0.5})


def test_not_a_number_is_not_a_lower_threshold() -> None:
    with pytest.raises(PolicyLoosened):
        tightened(policy_of(), thresholds={Category.HATE: math.nan})


def test_a_wish_turns_allowed_into_flagged_at_any_threshold() -> None:
    stage = StagePolicy(("keywords",), Rule(0.1, Action.BLOCK))
    stage = replace(stage, rules={Category.PROFANITY: Rule(0.1, Action.ALLOW)})
    changed = tightened(policy_of(input=stage, output=stage), thresholds={Category.PROFANITY: 0.8})
    assert changed.input.rule(Category.PROFANITY) == Rule(0.8, Action.FLAG)


def test_a_wish_keeps_the_action_of_the_rule() -> None:
    stage = StagePolicy(NAMES, Rule(0.5, Action.BLOCK))
    stage = replace(stage, rules={Category.PERSONAL_DATA: Rule(0.5, Action.REDACT)})
    changed = tightened(
        policy_of(input=stage, output=stage), thresholds={Category.PERSONAL_DATA: 0.2}
    )
    assert changed.output.rule(Category.PERSONAL_DATA) == Rule(0.2, Action.REDACT)


def test_detectors_may_be_added_and_not_dropped() -> None:
    policy = policy_of()
    assert tightened(policy, detectors=NAMES).output.detectors == NAMES
    with pytest.raises(PolicyLoosened) as refused:
        tightened(policy, detectors=["keywords", "prompt_detector"])
    assert refused.value.param == "detectors"
    with pytest.raises(PolicyLoosened):
        tightened(policy, detectors=[])


def test_detectors_of_either_stage_are_demanded() -> None:
    policy = policy_of(output=StagePolicy(("prompt_detector",), Rule(0.5, Action.BLOCK)))
    with pytest.raises(PolicyLoosened):
        tightened(policy, detectors=["keywords", "pii"])


def test_a_detector_that_is_wished_often_is_asked_once() -> None:
    wished = ["pii", "keywords", "pii"] + ["keywords"] * 1_000
    assert tightened(policy_of(), detectors=wished).input.detectors == ("pii", "keywords")


@pytest.mark.parametrize(
    "wish",
    [
        StreamPolicy(mode=StreamMode.FAST),
        StreamPolicy(overlap_chars=63),
        StreamPolicy(fail_tail=FailMode.OPEN),
    ],
)
def test_a_stream_may_not_be_loosened(wish: StreamPolicy) -> None:
    with pytest.raises(PolicyLoosened):
        tightened(policy_of(), stream=wish)
    assert tightened(policy_of(), stream=wish, may_loosen=True).stream == wish


def test_a_fast_stream_may_be_held() -> None:
    fast = StreamPolicy(mode=StreamMode.FAST, fail_tail=FailMode.OPEN)
    assert tightened(policy_of(stream=fast), stream=StreamPolicy()).stream == StreamPolicy()
    assert tightened(policy_of(stream=fast), stream=fast).stream == fast


@pytest.mark.parametrize(
    ("demanded", "allowed"),
    [
        ("off", {"off", "cap", "tilt", "tilt_cap"}),
        ("cap", {"cap", "tilt_cap"}),
        ("tilt", {"tilt", "tilt_cap"}),
        ("tilt_cap", {"tilt_cap"}),
    ],
)
def test_a_mode_may_only_be_one_that_does_more(demanded: str, allowed: set[str]) -> None:
    policy = policy_of(rectification=RectificationPolicy(RectificationMode(demanded)))
    for mode in RectificationMode:
        wish = RectificationPolicy(mode)
        if mode in allowed:
            assert tightened(policy, rectification=wish).rectification == wish
        else:
            with pytest.raises(PolicyLoosened) as refused:
                tightened(policy, rectification=wish)
            assert refused.value.param == "rectification.mode"
        assert tightened(policy, rectification=wish, may_loosen=True).rectification == wish


@pytest.mark.parametrize("name", ["epsilon", "beta"])
def test_a_strength_may_only_be_raised(name: str) -> None:
    def rules(value: float) -> RectificationPolicy:
        return RectificationPolicy(RectificationMode.CAP, **{name: value})

    policy = policy_of(rectification=rules(0.2))
    for value in (0.2, 0.3):
        assert tightened(policy, rectification=rules(value)).rectification == rules(value)
    for value in (0.1, float("nan")):
        with pytest.raises(PolicyLoosened) as refused:
            tightened(policy, rectification=rules(value))
        assert refused.value.param == f"rectification.{name}"
    assert tightened(policy).rectification == rules(0.2)


def test_a_policy_that_only_watches_does_not_rectify() -> None:
    rules = RectificationPolicy(RectificationMode.CAP)
    assert policy_of(rectification=rules).rectifies
    assert not policy_of(rectification=rules, enforce=False).rectifies
    assert not policy_of().rectifies


def test_a_key_that_may_loosen_gets_what_it_wishes() -> None:
    changed = tightened(
        policy_of(), thresholds={Category.HATE: 1.0}, detectors=["pii"], may_loosen=True
    )
    assert changed.input.rule(Category.HATE).threshold == 1.0
    assert changed.output.detectors == ("pii",)


rules = st.builds(
    Rule,
    st.one_of(st.floats(0, 1), st.sampled_from(OperatingPoint)),
    st.sampled_from(Action),
)
stages = st.builds(
    StagePolicy,
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple),
    rules,
    st.dictionaries(st.sampled_from(CATEGORIES), rules),
    st.sampled_from(FailMode),
)
policies = st.builds(Policy, st.just("p"), st.just("0"), stages, stages, enforce=st.booleans())
findings = st.lists(
    st.builds(
        Detection,
        st.sampled_from(NAMES),
        st.sampled_from(CATEGORIES),
        st.floats(0, 1),
        st.just(0),
        st.just(1),
    ),
    max_size=8,
)


def outcomes(
    policy: Policy, stage: Stage, found: list[Detection], failed: set[str]
) -> list[Outcome]:
    """What the detectors of this policy would find in one and the same text."""
    return [
        Outcome(
            DETECTORS[name],
            DetectorStatus.ERROR if name in failed else DetectorStatus.OK,
            () if name in failed else tuple(d for d in found if d.detector == name),
            1.0,
            False,
            Coverage(1, 1),
        )
        for name in policy.stage(stage).detectors
    ]


@given(
    policies,
    findings,
    st.sampled_from(Stage),
    st.sets(st.sampled_from(NAMES)),
    st.fixed_dictionaries(
        {
            "thresholds": st.dictionaries(st.sampled_from(CATEGORIES), st.floats(0, 1)),
            "detectors": st.none() | st.lists(st.sampled_from(NAMES), min_size=1),
        }
    ),
)
def test_whatever_was_found_before_is_found_after_accepted_wishes(
    policy: Policy,
    found: list[Detection],
    stage: Stage,
    failed: set[str],
    wishes: Mapping[str, object],
) -> None:
    try:
        changed = tightened(policy, **wishes)
    except PolicyLoosened:
        return
    before = decide(outcomes(policy, stage, found, failed), policy, stage)
    after = decide(outcomes(changed, stage, found, failed), changed, stage)
    assert after.action.severity >= before.action.severity
    assert set(before.detections) <= set(after.detections)
    for category, action in before.flagged.items():
        assert after.flagged[category].severity >= action.severity
    assert after.blocks >= before.blocks
    assert set(before.redactions) <= set(after.redactions)


@given(policies, st.sampled_from(CATEGORIES), st.floats(0, 1))
def test_a_threshold_at_or_under_the_demanded_one_is_never_refused(
    policy: Policy, category: Category, share: float
) -> None:
    lowest = min(resolved(policy)[stage][category] for stage in Stage)
    changed = tightened(policy, thresholds={category: lowest * share})
    assert changed.input.rule(category).threshold == lowest * share
