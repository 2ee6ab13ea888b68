"""The result of a benchmark as one Markdown table.

Knows nothing about how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from bench.summary import Spread

_HEAD: Final = ("Measurement", "Sluiceway", "Compared with", "Result (range)", "Aim", "Met")


class Direction(Enum):
    """Which side of an aim is the good one."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True)
class Aim:
    """What a result should reach."""

    direction: Direction
    value: float

    def met(self, result: float) -> bool:
        """Whether `result` reaches it."""
        if self.direction is Direction.AT_LEAST:
            return result >= self.value
        return result <= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    `ours` and `theirs` are medians of the absolute values in `unit`. `result` is what counts: a
    ratio, a difference or the value itself, in `result_unit`, over the rounds of this run.
    """

    what: str
    ours: float
    theirs: float | None
    unit: str
    result: Spread
    result_unit: str = "x"
    aim: Aim | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the aim; None without one."""
        return None if self.aim is None else self.aim.met(self.result.median)


@dataclass(frozen=True, slots=True)
class Part:
    """One of the measured subjects: its rows, and every number behind them."""

    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def render(rows: Sequence[Row]) -> str:
    """A Markdown table with one line for each row, and below it which aims were met."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD)), *map(_row, rows)]
    aimed = [row for row in rows if row.met is not None]
    met = [row.what for row in aimed if row.met]
    missed = [row.what for row in aimed if not row.met]
    if aimed:
        lines += ["", f"Aims met: {'; '.join(met) or 'none'}."]
        lines += [f"Aims missed: {'; '.join(missed) or 'none'}."]
    return "\n".join(lines)


def _row(row: Row) -> str:
    spread, unit = row.result, row.result_unit
    result = (
        f"**{_number(spread.median)}** {unit} "
        f"({_number(spread.lowest)}\u2013{_number(spread.highest)})"
    )
    aim = f"{row.aim.direction.value} {_number(row.aim.value)} {unit}" if row.aim else ""
    theirs = "" if row.theirs is None else f"{_number(row.theirs)} {row.unit}"
    met = {True: "yes", False: "no", None: ""}[row.met]
    return _line((row.what, f"{_number(row.ours)} {row.unit}", theirs, result, aim, met))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three figures that count, and no more digits than they need."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2  # noqa: PLR2004 - powers of ten
    return f"{value:.{digits}f}"
