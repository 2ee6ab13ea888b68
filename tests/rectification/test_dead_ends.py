import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.rectification.dead_ends import DeadEnds


def test_the_newest_token_is_taken_back_and_not_tried_again():
    dead_ends = DeadEnds(4)
    assert dead_ends.retreat([5, 6, 7]) == 1
    assert dead_ends.excluded(2) == {7}
    assert dead_ends.excluded(1) == frozenset()


def test_a_position_that_failed_before_is_taken_back_too():
    dead_ends = DeadEnds(9)
    dead_ends.retreat([5, 6, 7])
    assert dead_ends.retreat([5, 6, 8]) == 2
    assert dead_ends.excluded(1) == {6}
    assert dead_ends.excluded(2) == frozenset()  # that text is gone


def test_a_dead_end_right_after_a_retreat_goes_further_back():
    dead_ends = DeadEnds(9)
    dead_ends.retreat([5, 6, 7])
    assert dead_ends.retreat([5, 6]) == 1
    assert dead_ends.excluded(1) == {6}


def test_exclusions_before_the_retreat_stay():
    dead_ends = DeadEnds(9)
    dead_ends.retreat([5])
    dead_ends.retreat([4, 3, 2])
    assert dead_ends.excluded(0) == {5}
    assert dead_ends.excluded(2) == {2}


def test_it_gives_up_when_the_budget_or_the_text_is_used_up():
    assert DeadEnds(0).retreat([1]) is None
    assert DeadEnds(3).retreat([]) is None
    dead_ends = DeadEnds(2)
    assert dead_ends.retreat([1, 2]) == 1
    assert dead_ends.retreat([1, 3]) is None  # would take back two, one is left


def test_a_limit_is_not_negative():
    with pytest.raises(ValueError, match="limit"):
        DeadEnds(-1)


@given(st.integers(0, 30), st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)))
def test_a_search_ends_within_its_budget_and_never_says_the_same_text_twice(limit, blocked):
    """Decode the lowest token that is allowed, to length 4; some texts are dead ends."""
    dead_ends, text, taken_back, seen = DeadEnds(limit), [], 0, []
    while len(text) < 4:
        allowed = {0, 1, 2} - dead_ends.excluded(len(text))
        text.append(min(allowed))
        if tuple(text) not in blocked:
            continue
        assert tuple(text) not in seen
        seen.append(tuple(text))
        steps = dead_ends.retreat(text)
        if steps is None:
            break
        taken_back += steps
        del text[-steps:]
    assert taken_back <= limit
    assert len(text) < 4 or tuple(text) not in blocked or steps is None
