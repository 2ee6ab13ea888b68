from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import Detection, OperatingPoint, Unscanned
from app.domain.policy import Action, FailMode, Policy, Rule, StagePolicy
from app.domain.verdict import (
    Coverage,
    DetectorStatus,
    Outcome,
    Verdict,
    decide,
    merge,
    resolve_threshold,
)
from tests.fakes import PhraseDetector

HATE, THREAT, PII = Category.HATE, Category.THREAT, Category.PERSONAL_DATA
FULL = Coverage(10, 10)


@dataclass
class PointDetector(PhraseDetector):
    """Answers with the operating point, so that a mix-up of stage or category shows."""

    def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
        base = {OperatingPoint.STRICT: 0.2, OperatingPoint.BALANCED: 0.5, OperatingPoint.LOOSE: 0.8}
        return base[point] + 0.1 * (stage is Stage.OUTPUT) + 0.01 * (category is THREAT)


def found(category: Category, score: float, detector: str = "keywords") -> Detection:
    return Detection(detector, category, score, 0, 3)


def outcome(
    *detections: Detection,
    status: DetectorStatus = DetectorStatus.OK,
    coverage: Coverage = FULL,
    name: str = "keywords",
) -> Outcome:
    return Outcome(PointDetector(name=name), status, detections, 1.0, False, coverage)


def policy_of(
    rules: Mapping[Category, Rule] | None = None,
    *,
    default: Rule | None = None,
    fail: FailMode = FailMode.CLOSED,
    on_unscannable: Action = Action.FLAG,
    enforce: bool = True,
) -> Policy:
    stage = StagePolicy(
        ("keywords",),
        default or Rule(0.5, Action.BLOCK),
        rules or {},
        fail,
        on_unscannable=on_unscannable,
    )
    return Policy("default", "0" * 64, stage, stage, enforce=enforce)


def verdict_of(
    *detections: Detection,
    policy: Policy | None = None,
    stage: Stage = Stage.INPUT,
    status: DetectorStatus = DetectorStatus.OK,
    unscannable: Sequence[Unscanned] = (),
) -> Verdict:
    return decide([outcome(*detections, status=status)], policy or policy_of(), stage, unscannable)


RULES = {
    HATE: Rule(0.7, Action.BLOCK),
    THREAT: Rule(0.3, Action.FLAG),
    PII: Rule(0.5, Action.REDACT),
    Category.PROFANITY: Rule(0.0, Action.ALLOW),
}


@pytest.mark.parametrize(
    ("scores", "action", "flagged"),
    [
        ({}, Action.ALLOW, set()),
        ({HATE: 0.69}, Action.ALLOW, set()),
        ({HATE: 0.7}, Action.BLOCK, {HATE}),
        ({HATE: 1.0}, Action.BLOCK, {HATE}),
        ({THREAT: 0.3}, Action.FLAG, {THREAT}),
        ({PII: 0.5}, Action.REDACT, {PII}),
        ({Category.PROFANITY: 1.0}, Action.ALLOW, set()),
        ({Category.SELF_HARM: 0.89}, Action.ALLOW, set()),
        ({Category.SELF_HARM: 0.9}, Action.BLOCK, {Category.SELF_HARM}),
        ({THREAT: 1.0, PII: 1.0}, Action.REDACT, {THREAT, PII}),
        ({THREAT: 1.0, PII: 1.0, HATE: 0.7}, Action.BLOCK, {THREAT, PII, HATE}),
        ({THREAT: 0.29, PII: 0.49, HATE: 0.69}, Action.ALLOW, set()),
    ],
)
def test_scores_become_an_action(
    scores: Mapping[Category, float], action: Action, flagged: set[Category]
) -> None:
    policy = policy_of(RULES, default=Rule(0.9, Action.BLOCK))
    verdict = verdict_of(*(found(c, score) for c, score in scores.items()), policy=policy)
    assert verdict.action is action
    assert set(verdict.flagged) == flagged
    assert verdict.category_scores == scores
    assert {d.category for d in verdict.detections} == flagged
    assert verdict.blocks is (action is Action.BLOCK)


@given(st.floats(0, 1))
def test_a_threshold_is_reached_exactly_at_its_edge(threshold: float) -> None:
    policy = policy_of(default=Rule(threshold, Action.BLOCK))
    assert verdict_of(found(HATE, threshold), policy=policy).blocks
    below = math.nextafter(threshold, -1.0)
    assert not verdict_of(found(HATE, below), policy=policy).blocks


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("point", list(OperatingPoint))
def test_an_operating_point_is_the_number_of_the_detector(
    stage: Stage, point: OperatingPoint
) -> None:
    detector = PointDetector()
    rule = Rule(point, Action.BLOCK)
    number = resolve_threshold(rule, detector, stage, THREAT)
    assert number == detector.threshold(stage, THREAT, point)
    policy = policy_of(default=rule)
    assert verdict_of(found(THREAT, number), policy=policy, stage=stage).blocks
    below = math.nextafter(number, 0.0)
    assert not verdict_of(found(THREAT, below), policy=policy, stage=stage).blocks


def test_a_number_overrides_the_detector() -> None:
    assert resolve_threshold(Rule(0.0, Action.BLOCK), PointDetector(), Stage.INPUT, HATE) == 0.0


def test_each_detector_is_measured_by_its_own_operating_point() -> None:
    class Deaf(PointDetector):
        def threshold(self, stage: Stage, category: Category, point: OperatingPoint) -> float:
            return 0.99

    loud = outcome(found(HATE, 0.6))
    deaf = replace(outcome(found(HATE, 0.9, "pii"), name="pii"), detector=Deaf(name="pii"))
    policy = policy_of(default=Rule(OperatingPoint.BALANCED, Action.BLOCK))
    verdict = decide([loud, deaf], policy, Stage.INPUT)
    assert [d.detector for d in verdict.detections] == ["keywords"]
    assert verdict.category_scores == {HATE: 0.9}
    assert [r.threshold for r in verdict.reports] == [0.5, 0.99]


@pytest.mark.parametrize("status", [s for s in DetectorStatus if s.failed])
@pytest.mark.parametrize("enforce", [True, False])
def test_a_failure_closes_or_opens(status: DetectorStatus, enforce: bool) -> None:
    closed = verdict_of(policy=policy_of(enforce=enforce), status=status)
    assert closed.action is Action.BLOCK
    assert closed.degraded == status.value
    assert closed.unjudged is enforce
    assert closed.passed_unjudged is not enforce
    opened = verdict_of(policy=policy_of(enforce=enforce, fail=FailMode.OPEN), status=status)
    assert opened.action is Action.ALLOW
    assert opened.degraded == status.value
    assert opened.passed_unjudged
    assert not opened.unjudged


def test_the_fail_mode_is_that_of_the_stage() -> None:
    closed, opened = policy_of(), policy_of(fail=FailMode.OPEN)
    policy = replace(closed, output=opened.output)
    assert verdict_of(policy=policy, status=DetectorStatus.TIMEOUT).blocks
    verdict = verdict_of(policy=policy, status=DetectorStatus.TIMEOUT, stage=Stage.OUTPUT)
    assert verdict.passed_unjudged


def test_one_failure_among_answers_counts() -> None:
    failed = outcome(status=DetectorStatus.ERROR, coverage=Coverage(0, 10), name="pii")
    verdict = decide([outcome(), failed], policy_of(), Stage.INPUT)
    assert verdict.unjudged
    assert verdict.coverage.ratio == 0.0
    found_too = decide([outcome(found(HATE, 1.0)), failed], policy_of(), Stage.INPUT)
    assert found_too.blocks
    assert not found_too.unjudged
    open_but_found = decide(
        [outcome(found(HATE, 1.0)), failed], policy_of(fail=FailMode.OPEN), Stage.INPUT
    )
    assert open_but_found.blocks
    assert not open_but_found.passed_unjudged


@pytest.mark.parametrize("action", [Action.ALLOW, Action.FLAG, Action.BLOCK])
def test_what_no_detector_can_read_follows_the_policy(action: Action) -> None:
    verdict = verdict_of(
        policy=policy_of(on_unscannable=action), unscannable=[Unscanned.MEDIA, Unscanned.MEDIA]
    )
    assert verdict.action is action
    assert verdict.coverage.reasons == (Unscanned.MEDIA,)
    assert not verdict.unjudged


def test_a_policy_that_only_watches_judges_the_same_and_stops_nothing() -> None:
    detections = (found(HATE, 1.0), found(PII, 1.0))
    watching = verdict_of(*detections, policy=policy_of(RULES, enforce=False))
    acting = verdict_of(*detections, policy=policy_of(RULES))
    assert watching == replace(acting, enforced=False)
    assert acting.blocks
    assert not watching.blocks
    assert not watching.passed_unjudged
    assert acting.redactions == (detections[1],)
    assert watching.redactions == ()


def test_only_detections_over_a_redact_rule_are_redacted() -> None:
    low, high, other = found(PII, 0.4), found(PII, 0.6), found(THREAT, 0.9)
    verdict = verdict_of(low, high, other, policy=policy_of(RULES))
    assert verdict.redactions == (high,)


def test_the_top_category_is_severe_first_and_likely_second() -> None:
    policy = policy_of(RULES)
    assert verdict_of(policy=policy).top_category is None
    flagged = (found(THREAT, 1.0), found(HATE, 0.7))
    assert verdict_of(*flagged, policy=policy).top_category is HATE
    both = (found(HATE, 0.8), found(Category.SELF_HARM, 0.9))
    assert verdict_of(*both, policy=policy).top_category is Category.SELF_HARM


def test_a_report_tells_what_is_nearest_to_its_threshold() -> None:
    policy = policy_of(RULES, default=Rule(0.95, Action.BLOCK))
    verdict = verdict_of(found(Category.SELF_HARM, 0.9), found(HATE, 0.69), policy=policy)
    (report,) = verdict.reports
    assert (report.category, report.score, report.threshold) == (HATE, 0.69, 0.7)
    (silent,) = verdict_of(policy=policy).reports
    assert (silent.category, silent.score) == (None, 0.0)


def test_reports_keep_the_order_of_the_detectors() -> None:
    outcomes = [outcome(name=name) for name in ("pii", "keywords", "prompt_detector")]
    verdict = decide(outcomes, policy_of(), Stage.INPUT)
    assert [r.name for r in verdict.reports] == ["pii", "keywords", "prompt_detector"]


def test_the_coverage_is_that_of_the_detector_that_read_least() -> None:
    partly = Coverage(4, 10, (Unscanned.UNKNOWN_TOKEN,))
    verdict = decide(
        [outcome(), outcome(coverage=partly)], policy_of(), Stage.INPUT, [Unscanned.MEDIA]
    )
    assert verdict.coverage == Coverage(4, 10, (Unscanned.UNKNOWN_TOKEN, Unscanned.MEDIA))


def test_an_empty_text_is_covered_unless_something_hides_in_it() -> None:
    assert Coverage(0, 0).ratio == 1.0
    assert Coverage(0, 0, (Unscanned.MEDIA,)).ratio == 0.0
    assert Coverage(3, 4).ratio == 0.75
    assert decide([], policy_of(), Stage.INPUT).coverage.ratio == 1.0
    assert decide([], policy_of(), Stage.INPUT, [Unscanned.MEDIA]).coverage.ratio == 0.0


def test_nothing_to_merge_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        merge([])


def test_merging_one_verdict_is_that_verdict() -> None:
    verdict = verdict_of(found(HATE, 1.0), status=DetectorStatus.ERROR)
    assert merge([verdict]) == verdict


def test_merging_takes_the_worst_of_each() -> None:
    policy = policy_of(RULES)
    prompt = verdict_of(found(THREAT, 0.9), found(HATE, 0.2), policy=policy)
    answer = verdict_of(found(HATE, 0.8), policy=policy, stage=Stage.OUTPUT)
    for pair in ([prompt, answer], [answer, prompt]):
        merged = merge(pair)
        assert merged.action is Action.BLOCK
        assert merged.blocks
        assert merged.flagged == {THREAT: Action.FLAG, HATE: Action.BLOCK}
        assert merged.category_scores == {THREAT: 0.9, HATE: 0.8}
        assert merged.stage is pair[-1].stage
        assert len(merged.detections) == len(merged.reports) == 2
        assert merged.top_category is HATE


def test_the_same_category_keeps_its_severest_action() -> None:
    blocking = policy_of({PII: Rule(0.5, Action.BLOCK)})
    policy = replace(blocking, output=policy_of({PII: Rule(0.5, Action.FLAG)}).output)
    sides = [
        verdict_of(found(PII, 1.0), policy=policy, stage=stage)
        for stage in (Stage.INPUT, Stage.OUTPUT)
    ]
    assert merge(sides).flagged == merge(sides[::-1]).flagged == {PII: Action.BLOCK}


def test_merging_adds_up_what_was_read_and_why_not_more() -> None:
    first = replace(verdict_of(), coverage=Coverage(3, 5, (Unscanned.UNKNOWN_TOKEN,)))
    second = replace(
        verdict_of(), coverage=Coverage(5, 5, (Unscanned.MEDIA, Unscanned.UNKNOWN_TOKEN))
    )
    merged = merge([first, second]).coverage
    assert merged == Coverage(8, 10, (Unscanned.UNKNOWN_TOKEN, Unscanned.MEDIA))


def test_a_failure_of_one_side_stays_visible() -> None:
    failed = verdict_of(status=DetectorStatus.TIMEOUT)
    for pair in ([failed, verdict_of()], [verdict_of(), failed]):
        assert merge(pair).degraded == "timeout"
        assert merge(pair).unjudged
    beside = merge([failed, verdict_of(found(HATE, 1.0))])
    assert beside.blocks
    assert not beside.unjudged
    opened = verdict_of(policy=policy_of(fail=FailMode.OPEN), status=DetectorStatus.ERROR)
    assert merge([opened, verdict_of()]).passed_unjudged


def test_a_verdict_that_acts_cannot_hide_behind_one_that_watches() -> None:
    acting = verdict_of(found(HATE, 1.0))
    watching = verdict_of(policy=policy_of(enforce=False))
    for pair in ([acting, watching], [watching, acting]):
        with pytest.raises(ValueError, match="different policies"):
            merge(pair)


detections = st.builds(found, st.sampled_from([HATE, THREAT, PII]), st.floats(0, 1))
verdicts = st.builds(
    lambda some, status: verdict_of(*some, policy=policy_of(RULES), status=status),
    st.lists(detections, max_size=3),
    st.sampled_from(DetectorStatus),
)


@given(st.lists(verdicts, min_size=1, max_size=5))
def test_a_merged_verdict_is_as_severe_as_its_severest(some: list[Verdict]) -> None:
    merged = merge(some)
    assert merged.action is max((v.action for v in some), key=lambda a: a.severity)
    assert merged.blocks is any(v.blocks for v in some)
    assert bool(merged.degraded) is any(v.degraded for v in some)
    assert set(merged.flagged) == {c for v in some for c in v.flagged}


@given(st.lists(detections, max_size=5), detections, st.sampled_from(DetectorStatus))
def test_finding_more_is_never_milder(
    some: list[Detection], more: Detection, status: DetectorStatus
) -> None:
    policy = policy_of(RULES)
    before = verdict_of(*some, policy=policy, status=status)
    after = verdict_of(*some, more, policy=policy, status=status)
    assert after.action.severity >= before.action.severity


def test_toxicity_has_a_severity_whatever_the_policy_says() -> None:
    policy = policy_of(default=Rule(0.99, Action.ALLOW))
    some = [found(HATE, 0.1), found(HATE, 0.55), found(THREAT, 0.9), found(PII, 1.0)]
    weak = outcome(found(HATE, 0.3), found(Category.VIOLENCE, 0.1), name="pii")
    verdict = decide([outcome(*some), weak], policy, Stage.INPUT)
    assert verdict.action is Action.ALLOW
    assert verdict.severity == {HATE: 2, THREAT: 3}


def test_the_graver_severity_is_kept_when_verdicts_are_merged() -> None:
    one = verdict_of(found(HATE, 0.9), found(THREAT, 0.3))
    other = verdict_of(found(HATE, 0.3), found(Category.VIOLENCE, 0.3))
    assert merge([one, other]).severity == {HATE: 3, THREAT: 1, Category.VIOLENCE: 1}
