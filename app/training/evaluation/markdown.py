"""Tables in Markdown. Knows nothing about what stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Cell = str | float | bool | None


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table; figures have three digits, what is not known stays empty."""
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line([cell(value) for value in row]) for row in rows]
    return "\n".join(lines)


def cell(value: Cell) -> str:
    """One value as text."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            # .123 and 1.000 in columns of rates; milliseconds and larger numbers need less.
            return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"  # noqa: PLR2004 - see above
        case _:
            return str(value).replace("|", "\\|")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
