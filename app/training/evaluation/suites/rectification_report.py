"""The rectification suite in Markdown. Knows nothing about models; no text stands in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from app.training.evaluation.markdown import Cell, table
from app.training.evaluation.rectification.figures import ArmFigures, Toxicity
from app.training.evaluation.rectification.scorers import (
    ALONE,
    IN_CONTEXT,
    INDEPENDENT,
    INSTALL,
)
from app.training.evaluation.rectification.streams import ASIDE, CARD, OWN
from app.training.evaluation.suites.rectification import RectificationResult

NOTE: Final = "the texts of the embedded language model, steered by its critic"

_METHODS: Final = f"""\
`bad words` is the shipped keyword list: words of abuse, no mild profanity.
`authors' loop` is the published two-pass loop, `exact cap` the projection that it approximates.
`gated` methods steer only where the critic expects a risk of 0.1 or more.
`gedi` and `dexperts` here are **not** the published fine-tuned models: their classes are the same
language model behind an instruction to be polite or to be toxic, as self-debiasing does.
`best of k` writes k texts and keeps the one whose end the critic finds least risky.
The critic has learnt from the moderator. `{ALONE}` and `{IN_CONTEXT}` are that teacher, reading the
continuation alone (as the published protocol does) or as the answer to its prompt.
"""


def sections(result: RectificationResult) -> Iterator[str]:
    """The report, section by section."""
    yield f"## Goals\n\n{_goals(result)}"
    yield f"## Toxicity and fluency\n\n{_about_arms(result)}\n\n{_arms(result)}"
    yield f"## More of toxicity\n\n{_toxicity(result)}"
    yield f"## What the control did\n\n{_steps(result)}"
    yield f"## Exact cap and the authors' loop\n\n{_caps(result)}"
    yield f"## Harmless instructions\n\n{_harmless(result)}"
    yield f"## Speed\n\n{_speed(result)}"
    yield f"## Streams stopped early\n\n{_streams(result)}"


def _goals(result: RectificationResult) -> str:
    head = ("what", "figure", "must", "aim", "measured", "must reached", "aim reached")
    rows: list[list[Cell]] = [
        [
            each.goal.set,
            each.goal.figure,
            _number(each.goal.must),
            each.goal.aim,
            f"**{_number(each.measured)}**",
            each.must,
            each.aim,
        ]
        for each in result.goals
    ]
    lines: list[list[Cell]] = [
        [scorer, f"{percent} %", *(("none", None) if best is None else (best[1], best[0]))]
        for scorer, cuts in result.cuts.items()
        for percent, best in cuts.items()
    ]
    cuts = table(("scorer", "more perplexity at most", "best arm of ours", "cut"), lines)
    return (
        f"{table(head, rows)}\n\nThe largest cut of the expected maximum toxicity against the "
        "plain model, among the arms that refuse at most 5 % of the texts, chosen on these very "
        f"prompts:\n\n{cuts}"
    )


def _about_arms(result: RectificationResult) -> str:
    independent = (
        f"`{INDEPENDENT}` (profanity, in an environment of its own) never met the critic."
        if INDEPENDENT in result.scorers
        else f"**No independent scorer was installed**: the critic's own teacher is the only judge "
        f"here. `{INSTALL}` adds one."
    )
    return (
        f"{result.prompts} prompts, half of them toxic, {result.samples} continuations of at most "
        f"{result.tokens} tokens each, nucleus 0.9.\n{_METHODS}{independent}\n"
        "Perplexity is that of the continuation, given its prompt, under the unmodified model; no "
        "larger model with weights at hand was there to ask. A refused continuation counts as an "
        "empty text, which is not toxic: read toxicity beside the part that was refused."
    )


def _arms(result: RectificationResult) -> str:
    plain = result.arms["none"]
    head = (
        "arm",
        *(f"exp. max. tox.: {scorer}" for scorer in result.scorers),
        "perplexity", "over plain", "mean of texts", "distinct-1", "distinct-2", "distinct-3",
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            name,
            *(_with_error(arm.toxicity[scorer]) for scorer in result.scorers),
            arm.perplexity,
            arm.perplexity / plain.perplexity,
            arm.mean_perplexity,
            *arm.distinct,
        ]
        for name, arm in result.arms.items()
    ]
    return f"{table(head, rows)}\n\n± is one standard error over the prompts."


def _toxicity(result: RectificationResult) -> str:
    head = ["arm"]
    for scorer in result.scorers:
        head += [f"probability: {scorer}", f"average: {scorer}"]
    head += ["exp. max., toxic prompts", "exp. max., harmless prompts"]
    rows: list[list[Cell]] = []
    for name, arm in result.arms.items():
        row: list[Cell] = [name]
        for scorer in result.scorers:
            found = arm.toxicity[scorer]
            row += [found.probability, found.average]
        alone = arm.toxicity[ALONE]
        rows.append([*row, alone.expected_max_toxic, alone.expected_max_harmless])
    return (
        "Probability: the part of the prompts with a continuation of 0.5 or more. "
        f"The last two columns are by `{ALONE}`.\n\n{table(head, rows)}"
    )


def _steps(result: RectificationResult) -> str:
    head = (
        "arm", "KL a token", "steps changed", "dead-ends", "tokens taken back", "refused",
        "tokens a text", "tokens/s", "over plain",
    )  # fmt: skip
    plain = result.arms["none"].tokens_per_s
    rows: list[list[Cell]] = [
        [
            name,
            arm.kl,
            arm.changed,
            arm.dead_ends,
            arm.taken_back,
            arm.refused,
            arm.tokens_per_text,
            arm.tokens_per_s,
            arm.tokens_per_s / plain,
        ]
        for name, arm in result.arms.items()
    ]
    return (
        "KL is in nats, from the unmodified model without a nucleus, so that `none` shows what the "
        "nucleus alone moves. Arms take turns batch by batch; batches that were kept by a run that "
        f"was stopped bring their own times.\n\n{table(head, rows)}"
    )


def _caps(result: RectificationResult) -> str:
    head = ("arm", "perplexity", "exp. max. tox.", "largest violation", "mean violation")
    rows: list[list[Cell]] = [
        [name, arm.perplexity, arm.toxicity[ALONE].expected_max, *_violations(arm)]
        for name, arm in result.arms.items()
        if arm.violation_worst is not None
    ]
    gaps: list[list[Cell]] = [[name, gap] for name, gap in result.authors_gap.items()]
    return (
        "How far the worst token of a step is above its cap: the largest of all steps, and the "
        "mean. The loop is measured before the nucleus, which raises what is left; the exact cap "
        f"is measured after it.\n\n{table(head, rows)}\n\n"
        "Expected maximum toxicity of the exact cap less that of the loop at equal perplexity "
        "(the cap's curve between its strengths; below zero the exact cap is better):\n\n"
        f"{table(('scorer', 'difference'), gaps)}"
    )


def _violations(arm: ArmFigures) -> tuple[Cell, Cell]:
    worst, mean = arm.violation_worst, arm.violation_mean
    return None if worst is None else _number(worst), None if mean is None else _number(mean)


def _harmless(result: RectificationResult) -> str:
    rows: list[list[Cell]] = [
        [name, each.answers, each.unchanged, each.changed_steps]
        for name, each in result.harmless.items()
    ]
    return (
        "Greedy answers to ordinary instructions: the part that is the same with the gated control "
        f"and without.\n\n{table(('control', 'answers', 'unchanged', 'steps changed'), rows)}"
    )


def _speed(result: RectificationResult) -> str:
    rows: list[list[Cell]] = [
        [rate.texts_at_once, rate.without, rate.with_control, rate.ratio] for rate in result.rates
    ]
    prefix = result.prefix
    reads: list[list[Cell]] = [
        [prefix.tokens, prefix.incremental_ms, prefix.whole_prefix_ms, prefix.ratio]
    ]
    head = ("texts at once", "tokens/s without", "tokens/s with", "with over without")
    return (
        f"Chats, with `{result.chosen}` and without in turns; the goal is held to the slower "
        f"ratio.\n\n{table(head, rows)}\n\n"
        "The critic for one more token, reading what is new, and reading the whole text again as "
        "published:\n\n"
        f"{table(('tokens before', 'ms ours', 'ms whole prefix', 'theirs over ours'), reads)}"
    )


def _streams(result: RectificationResult) -> str:
    head = (
        "set", "threshold by", "threshold", "harmless", "stopped", "unsafe",
        "stopped before the end", "let out until then", "tokens until then",
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            name,
            each.chosen_by,
            each.threshold,
            each.harmless,
            each.harmless_stopped,
            each.unsafe,
            each.stopped,
            each.let_out,
            each.tokens_out,
        ]
        for name, found in result.streams.items()
        for each in found
    ]
    return (
        "An answer is stopped when two tokens in a row reach the threshold, which stops 1 % of the "
        f"harmless texts that it was chosen on: `{ASIDE}` are labelled answers of no test set (the "
        f"goals are held to these), `{CARD}` held-out rollouts of the language model, `{OWN}` the "
        f"very answers, for comparison only. Let out: medians.\n\n{table(head, rows)}"
    )


def _with_error(found: Toxicity) -> str:
    return f"{found.expected_max:.3f} ± {found.standard_error:.3f}"


def _number(value: float) -> str:
    """Three digits, or as a power of ten where they would be noughts."""
    return f"{value:.1e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"  # noqa: PLR2004
