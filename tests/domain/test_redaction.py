from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.categories import Category
from app.domain.detection import Detection
from app.domain.redaction import merged, redact, replacement


def span(start: int, end: int, label: str = "email") -> Detection:
    return Detection("pii", Category.PERSONAL_DATA, 1.0, start, end, label)


def test_a_replacement_is_named_by_its_label_or_else_its_category() -> None:
    assert replacement(span(0, 1, "api_key")) == "[API_KEY]"
    assert replacement(span(0, 1, "")) == "[PERSONAL_DATA]"


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], "0123456789"),
        ([span(2, 4)], "01[EMAIL]456789"),
        ([span(0, 10)], "[EMAIL]"),
        ([span(0, 1), span(9, 10)], "[EMAIL]12345678[EMAIL]"),
        ([span(8, 10), span(0, 2, "card")], "[CARD]234567[EMAIL]"),
        # Adjacent ones stay two.
        ([span(2, 4), span(4, 6, "card")], "01[EMAIL][CARD]6789"),
        # Overlapping ones become one, named by the longest, in whatever order they come.
        ([span(2, 5), span(4, 9, "card")], "01[CARD]9"),
        ([span(4, 9, "card"), span(2, 5)], "01[CARD]9"),
        ([span(1, 9, "card"), span(3, 5)], "0[CARD]9"),
        ([span(1, 4), span(3, 7, "card"), span(6, 8, "phone")], "0[CARD]89"),
        ([span(2, 4), span(2, 4)], "01[EMAIL]456789"),
        # An empty span hides nothing, alone, inside another or at its edges.
        ([span(3, 3)], "0123456789"),
        ([span(2, 5), span(2, 2, "x"), span(3, 3, "x"), span(5, 5, "x")], "01[EMAIL]56789"),
    ],
)
def test_spans_are_replaced(spans: list[Detection], expected: str) -> None:
    assert redact("0123456789", spans) == expected


def test_offsets_are_code_points() -> None:
    assert redact("😀é😀 a@b.c!", [span(4, 9)]) == "😀é😀 [EMAIL]!"


def test_the_first_of_equally_long_spans_gives_the_name() -> None:
    assert redact("0123456789", [span(3, 6, "second"), span(1, 4, "first")]) == "0[FIRST]6789"


texts = st.text(alphabet="ab[]é😀\n", max_size=40)
bounds = st.tuples(st.integers(0, 40), st.integers(0, 40))


def spans_in(text: str, pairs: list[tuple[int, int]]) -> list[Detection]:
    ends = [sorted(min(end, len(text)) for end in pair) for pair in pairs]
    return [span(start, end, f"l{number}") for number, (start, end) in enumerate(ends)]


@given(texts, st.lists(bounds, max_size=8))
def test_text_outside_of_spans_is_intact_and_nothing_inside_is_left(
    text: str, pairs: list[tuple[int, int]]
) -> None:
    spans = spans_in(text, pairs)
    hidden = {at for one in spans for at in range(one.start, one.end)}
    rest = redact(text, spans)
    runs = merged(spans)
    # What remains when the replacements are taken out again, run by run.
    position, kept = 0, ""
    for start, end, name in runs:
        plain = text[position:start]
        assert rest.startswith(plain + name)
        kept += plain
        rest = rest.removeprefix(plain + name)
        position = end
    assert kept + rest == "".join(c for at, c in enumerate(text) if at not in hidden)
    assert {at for start, end, _ in runs for at in range(start, end)} == hidden


@given(texts, st.lists(bounds, max_size=8), st.randoms())
def test_the_order_of_detections_does_not_change_what_is_hidden(
    text: str, pairs: list[tuple[int, int]], random
) -> None:
    spans = spans_in(text, pairs)
    shuffled = random.sample(spans, len(spans))
    assert [run[:2] for run in merged(spans)] == [run[:2] for run in merged(shuffled)]


@given(texts, st.lists(bounds, max_size=8))
def test_runs_are_disjoint_in_order_and_never_empty(
    text: str, pairs: list[tuple[int, int]]
) -> None:
    position = 0
    for start, end, _ in merged(spans_in(text, pairs)):
        assert position <= start < end
        position = end
