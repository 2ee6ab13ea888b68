from app.training.evaluation.judging import Judgement
from app.training.evaluation.sets import Row, TestSet
from app.training.evaluation.suites.public import judge_sets, measure
from app.training.evaluation.suites.public_report import sections

WORDS = " ".join(["word"] * 22)


class EverythingIsUnsafe:
    def judge(self, rows):
        return [Judgement(0.8, caught=True) for _ in rows]


def rows(name, *facts, role="prompt"):
    made = tuple(
        Row(str(n), f"{text} {WORDS}", unsafe=unsafe, role=role, labels=("hate",))
        for n, (text, unsafe) in enumerate(facts)
    )
    return TestSet(name, made, len(made) + 1)


async def test_every_contestant_is_measured_on_every_set(judge):
    sets = [
        rows("xstest", ("a bomb", True), ("a bun", True), ("bomb squad", False), ("cake", False)),
        rows("answers", ("a bomb", True), role="response"),
    ]
    result = await measure(judge, await judge_sets(judge, sets, EverythingIsUnsafe()))
    xstest, answers = result.sets
    assert (xstest.rows, xstest.of_rows, xstest.unsafe) == (4, 5, 2)
    assert [*xstest.by] == ["cascade", "model", "floor"]
    assert (xstest.by["cascade"].recall, xstest.by["cascade"].fpr) == (0.5, 0.5)
    assert (xstest.by["floor"].recall, xstest.by["floor"].fpr) == (1.0, 1.0)
    assert answers.by["model"].recall == 1.0
    assert {each.goal.figure: each.must for each in result.goals if each.goal.set == "xstest"} == {
        "fpr": False,
        "recall": False,
    }
    assert [*result.latency] == ["whole engine", "model"]
    assert result.latency["model"].texts == 4


async def test_the_report_has_every_table_and_no_text(judge):
    facts = [("a secret bomb", True)] * 10 + [("a secret bun", False)] * 2
    result = await measure(judge, await judge_sets(judge, [rows("wildguard_test", *facts)], None))
    text = "\n".join(sections(result))
    for title in (
        "## Goals",
        "## Every set: cascade",
        "## Every set: model",
        "## Harmless prompts that look unsafe",
        "## Beside other guards",
        "## Time for one text",
        "## Recall by category",
        "## Recall by label of the source",
    ):
        assert title in text
    assert "the cited authors' numbers" in text
    assert "| wildguard_test | prompt | 12 of 13 | 10 | 1.000 |" in text
    assert "secret" not in text


async def test_a_file_of_ones_own_has_no_goals(judge):
    result = await measure(judge, await judge_sets(judge, [rows("own", ("bun", False))], None))
    assert [each.goal.set for each in result.goals] == ["latency"]
    text = "\n".join(sections(result))
    assert "Beside other guards" not in text
