import json
from dataclasses import dataclass

from app.training.evaluation.judging import Judgement
from app.training.evaluation.machine import Machine, this_machine
from app.training.evaluation.markdown import cell, table
from app.training.evaluation.plots import precision_recall, reliability
from app.training.evaluation.report import Run, markdown, write
from app.training.evaluation.sets import Row, TestSet
from app.training.evaluation.suites.public import JudgedSet

MACHINE = Machine("2026-01-31", "a CPU", 2, 0.3, "3.11", "1.0")
RUN = Run("public", "tiny", ("model",), {"model": "r1"}, "own.jsonl", 5, 7, MACHINE)


@dataclass(frozen=True)
class Results:
    value: float


def judged(name, unsafe):
    rows = tuple(Row(str(n), "secret", unsafe=each) for n, each in enumerate(unsafe))
    answers = [Judgement(0.1 + 0.2 * n, caught=False) for n in range(len(rows))]
    return JudgedSet(TestSet(name, rows, len(rows)), {"cascade": answers, "model": answers})


def test_cells():
    values = (None, True, False, 0.25, 12.345, 3, "a|b")
    assert [cell(value) for value in values] == [
        "", "yes", "no", "0.250", "12.3", "3", "a\\|b",
    ]  # fmt: skip


def test_a_table_has_a_head_and_a_line_for_each_row():
    assert table(("a", "b"), [(1, None)]) == "| a | b |\n| --- | --- |\n| 1 |  |"


def test_a_report_says_when_on_what_and_of_which_models(tmp_path):
    text = markdown(RUN, ["## One"], ["curve.png"])
    for part in (
        "2026-01-31",
        "2 cores (a CPU)",
        "model r1",
        "at most 5 rows",
        "![curve](curve.png)",
    ):
        assert part in text
    write(tmp_path / "new", RUN, Results(0.5), text)
    content = json.loads((tmp_path / "new" / "results.json").read_text("utf-8"))
    assert content["results"] == {"value": 0.5}
    assert content["run"]["machine"]["cores"] == 2
    assert (tmp_path / "new" / "report.md").read_text("utf-8") == text


def test_the_machine_names_its_processor():
    assert this_machine().cores >= 1
    assert this_machine().cpu


def test_plots_are_drawn_of_sets_with_both_kinds_of_rows(tmp_path):
    sets = [judged("one", [True] * 4), judged("two", [False, True, False, True])]
    for draw in (precision_recall, reliability):
        path = tmp_path / f"{draw.__name__}.png"
        assert draw(sets, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert not draw(sets[:1], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
