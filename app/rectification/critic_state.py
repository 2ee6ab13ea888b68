"""Keys and values of the texts that a critic has read, one row each.

Knows nothing about the network that fills it, nor about whose text a row holds. A token stands in
its row where its position says and sees only what is not after it: taking tokens back needs no
work here, they are out of sight at once and the next ones are written over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GROWTH = 256  # tokens; a row that grows by one token must not copy everything


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a state: those without gaps are read where they lie, others are copied."""

    numbers: Tensor  # (rows,)
    block: slice | None
    count: int  # the highest number, plus one

    @classmethod
    def of(cls, numbers: Sequence[int], device: torch.device) -> Rows:
        """The rows with these numbers, in this order."""
        first = numbers[0]
        without_gaps = list(numbers) == list(range(first, first + len(numbers)))
        block = slice(first, first + len(numbers)) if without_gaps else None
        return cls(torch.tensor(numbers, device=device), block, max(numbers) + 1)


class CriticState:
    """Padding is always finite: a mask cannot hide NaN. Not made for gradients."""

    def __init__(self, layers: int, kv_heads: int, head_size: int, device: torch.device) -> None:
        self._kv_heads = kv_heads
        self._head_size = head_size
        self._device = device
        # per layer (2, rows, kv_heads, length, head_size)
        self._layers = [self._zeros(0, 0) for _ in range(layers)]

    def reserve(self, rows: int, length: int) -> None:
        """Make room; what was read stays.

        There is always one place more than `length` at the end. It belongs to no position, so that
        what padding writes to position -1 lands where no token looks.
        """
        _, has_rows, _, has_length, _ = self._layers[0].shape
        if rows <= has_rows and length < has_length:
            return
        room = max(has_length, (length // _GROWTH + 1) * _GROWTH)
        for index, old in enumerate(self._layers):
            new = self._zeros(max(rows, has_rows), room)
            new[:, :has_rows, :, :has_length] = old
            self._layers[index] = new

    def write(
        self, layer: int, rows: Rows, positions: Tensor, keys: Tensor, values: Tensor
    ) -> None:
        """Put keys and values (rows, new, kv_heads, head_size) at positions (rows, new)."""
        numbers = rows.numbers[:, None]
        old_keys, old_values = self._layers[layer]
        # Under autocast they come in bfloat16.
        old_keys[numbers, :, positions] = keys.to(old_keys.dtype)
        old_values[numbers, :, positions] = values.to(old_values.dtype)

    def read(self, layer: int, rows: Rows, length: int) -> tuple[Tensor, Tensor]:
        """Return keys and values from the start, each (rows, kv_heads, length, head_size)."""
        stored = self._layers[layer][:, :, :, :length]
        found = stored[:, rows.numbers] if rows.block is None else stored[:, rows.block]
        keys, values = found
        return keys, values

    def copy(self, source: int, target: int, length: int) -> None:
        """Let one reserved row begin with the first tokens of another."""
        for layer in self._layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]

    def drop(self, row: int) -> None:
        """Forget what a row has read: if it was poisoned, it must not be the next one's padding."""
        for layer in self._layers:
            layer[:, row : row + 1] = 0  # a row that was never written may not be there

    def clear(self) -> None:
        """Forget all rows and give their memory back."""
        self._layers = [self._zeros(0, 0) for _ in self._layers]

    def _zeros(self, rows: int, length: int) -> Tensor:
        # What is made in inference mode could be written to in no other mode.
        with torch.inference_mode(mode=False):
            return torch.zeros(
                2, rows, self._kv_heads, length, self._head_size, device=self._device
            )
