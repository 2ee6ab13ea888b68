from __future__ import annotations

import torch

from app.generation.key_values import KeyValues


def filled(rows: int, length: int) -> KeyValues:
    """Row r holds r + 1 everywhere."""
    cache = KeyValues(layers=2, kv_heads=2, head_size=4)
    cache.reserve(rows, length)
    marks = torch.arange(1.0, rows + 1).view(rows, 1, 1, 1).expand(rows, length, 2, 4)
    for layer in range(2):
        cache.write(layer, torch.arange(length).expand(rows, length), marks, -marks)
    return cache


def marks(cache: KeyValues, rows: int, length: int) -> list[float]:
    keys, values = cache.read(1, rows, length)
    assert torch.equal(keys, -values)
    return [float(row.unique()) for row in keys]


def test_growing_keeps_what_was_read() -> None:
    cache = filled(rows=2, length=3)

    cache.reserve(5, 1000)

    assert marks(cache, 2, 3) == [1, 2]


def test_the_last_row_takes_the_place_of_a_removed_one() -> None:
    cache = filled(rows=3, length=3)

    cache.remove_row(0, last=2)

    assert marks(cache, 2, 3) == [3, 2]


def test_a_removed_row_leaves_only_zeros() -> None:
    cache = filled(rows=2, length=3)

    cache.remove_row(1, last=1)

    assert marks(cache, 2, 3) == [1, 0]


def test_a_row_is_copied_from_another_cache() -> None:
    cache = filled(rows=2, length=3)
    cache.reserve(3, 3)

    cache.copy_row(filled(rows=2, length=3), source_row=0, row=2, length=3)

    assert marks(cache, 3, 3) == [1, 2, 1]


def test_without_rows_the_memory_is_given_back() -> None:
    cache = filled(rows=2, length=3)

    cache.reserve(0, 0)

    assert cache.read(0, 2, 3)[0].numel() == 0
