from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.categories import Category
from app.domain.detection import Detection
from app.domain.policy import StreamMode, StreamPolicy
from app.moderation.stream import StreamModerator, Window

PHRASE = "forbidden"
STUFFED = "for\u200b\u200bbid" + "\u200b" * 90 + "den"
POLICY = StreamPolicy(first_window_chars=16, window_chars=32, overlap_chars=12)

texts = st.text(alphabet="abcdef forbidn-.\u200bü😀\n", max_size=200)


def splits(text: str, cuts: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(marks)]


def squeezed(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def run(
    deltas: list[str],
    policy: StreamPolicy = POLICY,
    redact: str | None = None,
    *,
    partial: bool = False,
) -> tuple[str, list[Window], bool]:
    """Released text, the windows and whether one of them held the phrase."""
    moderator = StreamModerator(policy)
    released: list[str] = []
    windows: list[Window] = []

    def drain(*, take_partial: bool) -> bool:
        while window := moderator.next_window(partial=take_partial):
            windows.append(window)
            if PHRASE in squeezed(window.text):
                return False
            spans = []
            if redact is not None:
                start = window.text.find(redact)
                while start >= 0:
                    spans.append(_span(start, start + len(redact)))
                    start = window.text.find(redact, start + len(redact))
            released.append(moderator.judged(window, spans))
            assert moderator.released_chars <= window.end
        return True

    for delta in deltas:
        assert moderator.push(delta) == ""
        if not drain(take_partial=partial):
            return "".join(released), windows, True
    moderator.finish()
    blocked = not drain(take_partial=False)
    return "".join(released), windows, blocked


def _span(start: int, end: int) -> Detection:
    return Detection("pii", Category.PERSONAL_DATA, 1.0, start, end, "email")


@given(texts, st.lists(st.integers(0, 1_000), max_size=20))
def test_any_split_gives_the_same_windows_and_the_same_released_text(
    text: str, cuts: list[int]
) -> None:
    assert run(splits(text, cuts)) == run([text])


@given(texts, st.lists(st.integers(0, 1_000), max_size=20), st.booleans())
def test_a_clean_text_leaves_whole(text: str, cuts: list[int], partial: bool) -> None:
    text = text.replace("n", "m")
    released, _, blocked = run(splits(text, cuts), partial=partial)
    assert not blocked
    assert released == text


@given(
    st.text(alphabet="xyz .", max_size=120),
    st.text(alphabet="xyz .", max_size=60),
    st.sampled_from([PHRASE, "f-o-r-b-i-d-d-e-n", STUFFED]),
    st.lists(st.integers(0, 1_000), max_size=30),
    st.booleans(),
)
def test_nothing_of_a_phrase_leaves(
    before: str, after: str, phrase: str, cuts: list[int], partial: bool
) -> None:
    released, _, blocked = run(splits(before + phrase + after, cuts), partial=partial)
    assert blocked
    assert before.startswith(released)


@pytest.mark.parametrize("index", range(120))
@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_phrase_at_every_index_is_held(index: int, size: int) -> None:
    text = "x" * index + PHRASE + "y" * 40
    released, _, blocked = run([text[i : i + size] for i in range(0, len(text), size)])
    assert blocked
    assert released == "x" * len(released)
    assert len(released) <= index


@given(texts, st.lists(st.integers(0, 1_000), max_size=20), st.booleans())
def test_nothing_leaves_past_a_judged_index(text: str, cuts: list[int], partial: bool) -> None:
    moderator = StreamModerator(POLICY)
    judged = 0
    for delta in splits(text, cuts):
        moderator.push(delta)
        while window := moderator.next_window(partial=partial):
            assert window.start <= moderator.released_chars
            judged = window.end
            moderator.judged(window)
            assert moderator.released_chars <= judged
            overlap = squeezed(text[moderator.released_chars : judged])
            assert len(overlap) >= min(POLICY.overlap_chars, len(squeezed(text[:judged])))


@given(
    st.lists(st.sampled_from(["a@b.c", " ", "word ", "x"]), max_size=60),
    st.lists(st.integers(0, 1_000), max_size=30),
)
def test_redaction_replaces_every_span_whatever_the_split(
    words: list[str], cuts: list[int]
) -> None:
    text = "".join(words)
    released, _, _ = run(splits(text, cuts), redact="a@b.c")
    assert released == text.replace("a@b.c", "[EMAIL]")


def test_a_span_at_the_end_of_a_window_waits_until_it_is_complete() -> None:
    policy = StreamPolicy(first_window_chars=8, window_chars=16, overlap_chars=2)
    moderator = StreamModerator(policy)
    moderator.push("hi 123456")
    window = moderator.next_window()
    assert window is not None
    assert moderator.judged(window, [_span(3, len(window.text))]) == "hi "
    moderator.push("789 ok")
    moderator.finish()
    last = moderator.next_window()
    assert last is not None
    assert last.text[:9] == "hi 123456"
    assert moderator.judged(last, [_span(3, 12)]) == "[EMAIL] ok"


def test_fast_mode_lets_text_leave_at_once_and_still_hands_out_windows() -> None:
    moderator = StreamModerator(replace(POLICY, mode=StreamMode.FAST))
    assert moderator.push("x" * 20) == "x" * 20
    assert moderator.unjudged_chars == 20
    window = moderator.next_window()
    assert window is not None
    assert moderator.judged(window) == ""
    assert moderator.unjudged_chars == 4
    assert moderator.held_chars == 0


def test_partial_windows_come_only_when_they_release_something() -> None:
    moderator = StreamModerator(POLICY)
    moderator.push("x" * 12)
    assert moderator.next_window(partial=True) is None
    moderator.push("xy")
    window = moderator.next_window(partial=True)
    assert window is not None
    assert moderator.judged(window) == "xx"


def test_overflow_is_told() -> None:
    moderator = StreamModerator(replace(POLICY, buffer_chars=10))
    moderator.push("\u200b" * 11)
    assert moderator.next_window(partial=True) is None
    assert moderator.overflowing


def test_an_empty_channel_has_no_window() -> None:
    moderator = StreamModerator(POLICY)
    moderator.finish()
    assert moderator.next_window() is None


def test_the_final_window_comes_once() -> None:
    moderator = StreamModerator(POLICY)
    moderator.push("short")
    moderator.finish()
    window = moderator.next_window()
    assert window is not None
    assert window.final
    assert moderator.judged(window) == "short"
    assert moderator.next_window() is None


def judge(moderator: StreamModerator, delta: str) -> str:
    moderator.push(delta)
    released = ""
    while window := moderator.next_window():
        released += moderator.judged(window)
    return released


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("One two three four. Five", "One two three four."),
        ("One two three four five six", "One two three four five"),
        ("One, two: (three!) Four", "One, two: (three!)"),
        ("一二三四五六七八九十。一二三四五六", "一二三四五六七八九十。"),
        ("Oneandtwoandthreeandfour", "Oneandtwoandthre"),
    ],
)
def test_a_rewound_text_ends_with_a_sentence_or_a_word(text: str, left: str) -> None:
    letters = sum(map(str.isalnum, text))
    policy = StreamPolicy(first_window_chars=letters, window_chars=40, overlap_chars=8)
    moderator = StreamModerator(policy)
    judge(moderator, text)
    moderator.push(" and what did not pass")

    assert moderator.rewind() == moderator.whole() == left


@given(texts, st.lists(st.integers(0, 1_000), max_size=20), texts, st.booleans())
def test_after_a_rewind_all_is_judged_that_leaves(
    text: str, cuts: list[int], more: str, final: bool
) -> None:
    moderator = StreamModerator(POLICY)
    released = "".join(judge(moderator, delta) for delta in splits(text, cuts))
    if final:
        moderator.finish()

    left = moderator.rewind()

    assert left.startswith(released)
    assert text.startswith(left)
    released += judge(moderator, more)
    moderator.finish()
    while window := moderator.next_window():
        assert window.start <= moderator.released_chars
        assert window.text == (left + more)[window.start : window.end]
        released += moderator.judged(window)
    assert released == left + more
