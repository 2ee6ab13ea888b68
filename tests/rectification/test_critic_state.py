from __future__ import annotations

import torch

from app.rectification.critic_state import CriticState, Rows

CPU = torch.device("cpu")


def filled(rows, length):
    """Row r holds r + 1 everywhere, negated in the values."""
    state = CriticState(layers=2, kv_heads=2, head_size=4, device=CPU)
    state.reserve(rows, length)
    marks = torch.arange(1.0, rows + 1).view(rows, 1, 1, 1).expand(rows, length, 2, 4)
    for layer in range(2):
        chosen = Rows.of(range(rows), CPU)
        state.write(layer, chosen, torch.arange(length).expand(rows, length), marks, -marks)
    return state


def marks(state, numbers, length):
    keys, values = state.read(1, Rows.of(numbers, CPU), length)
    assert torch.equal(keys, -values)
    return [float(row.unique()) for row in keys]


def test_rows_are_read_in_the_order_asked_for() -> None:
    state = filled(rows=4, length=3)

    assert marks(state, [1, 2], 3) == [2, 3]
    assert marks(state, [3, 0], 3) == [4, 1]


def test_growing_keeps_what_was_read() -> None:
    state = filled(rows=2, length=3)

    state.reserve(5, 1000)
    state.reserve(1, 1)

    assert marks(state, [0, 1], 3) == [1, 2]
    assert state.read(0, Rows.of([4], CPU), 1000)[0].shape == (1, 2, 1000, 4)


def test_padding_is_written_where_no_token_looks() -> None:
    state = CriticState(layers=1, kv_heads=1, head_size=2, device=CPU)
    row, ones = Rows.of([0], CPU), torch.ones(1, 1, 1, 2)
    for length in (255, 256, 257, 512):
        state.reserve(1, length)

        state.write(0, row, torch.tensor([[-1]]), ones, ones)

        assert not state.read(0, row, length)[0].any()
        state.drop(0)


def test_a_row_begins_with_the_tokens_of_another() -> None:
    state = filled(rows=3, length=4)

    state.copy(source=0, target=2, length=3)

    assert marks(state, [1, 2], 3) == [2, 1]
    assert float(state.read(0, Rows.of([2], CPU), 4)[0][0, 0, 3, 0]) == 3


def test_a_dropped_row_leaves_only_zeros() -> None:
    state = filled(rows=2, length=3)

    state.drop(0)

    assert marks(state, [0, 1], 3) == [0, 2]


def test_a_cleared_state_holds_no_memory_and_can_be_filled_again() -> None:
    state = filled(rows=2, length=3)

    state.clear()

    assert state.read(0, Rows.of([0], CPU), 3)[0].numel() == 0
    state.reserve(1, 3)
    assert marks(state, [0], 3) == [0]


def test_what_grew_in_inference_mode_can_be_written_outside() -> None:
    with torch.inference_mode():
        state = filled(rows=1, length=3)

    state.drop(0)

    assert marks(state, [0], 3) == [0]
