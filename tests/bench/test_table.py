import pytest

from bench.summary import Spread
from bench.table import Aim, Direction, Row, render


def row(what="speed", result=0.95, aim=None, theirs=200.0):
    return Row(what, 190.0, theirs, "texts/s", Spread(result, 0.9, 1.0), "x", aim)


@pytest.mark.parametrize(
    ("direction", "value", "met"),
    [
        (Direction.AT_LEAST, 0.95, True),
        (Direction.AT_LEAST, 0.96, False),
        (Direction.AT_MOST, 0.95, True),
        (Direction.AT_MOST, 0.94, False),
    ],
)
def test_an_aim_is_met_on_its_own_side_and_at_its_edge(direction, value, met):
    assert row(aim=Aim(direction, value)).met is met


def test_a_row_without_an_aim_is_neither_met_nor_missed():
    assert row().met is None


def test_the_table_has_one_line_for_each_row():
    lines = render([row(aim=Aim(Direction.AT_LEAST, 0.9)), row("other", theirs=None)]).splitlines()
    assert lines[0].startswith("| Measurement |")
    assert lines[2] == (
        "| speed | 190 texts/s | 200 texts/s | **0.95** x (0.90\u20131.00) | ≥ 0.90 x | yes |"
    )
    assert lines[3] == "| other | 190 texts/s |  | **0.95** x (0.90\u20131.00) |  |  |"


def test_met_and_missed_aims_are_named():
    text = render(
        [
            row("good", aim=Aim(Direction.AT_LEAST, 0.9)),
            row("bad", aim=Aim(Direction.AT_LEAST, 0.99)),
            row("plain"),
        ]
    )
    assert text.endswith("Aims met: good.\nAims missed: bad.")


def test_a_table_without_aims_claims_nothing():
    assert "Aims" not in render([row()])


@pytest.mark.parametrize(("value", "shown"), [(0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234")])
def test_numbers_have_three_figures(value, shown):
    assert f"**{shown}** x" in render([row(result=value)])
