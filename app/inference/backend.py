"""What a detector asks of a model: encode a text, score a batch of token windows.

Knows nothing about which runtime does it, and nothing about queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain.detection import Gap


@dataclass(frozen=True, slots=True)
class Encoding:
    """One whole text as tokens, without special tokens.

    `offsets[i]` are the code points of the text that token `ids[i]` stands for. `gaps` are the
    stretches that the vocabulary has no token for.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    gaps: tuple[Gap, ...] = ()


class Backend(Protocol):
    """Runs one model. `encode` may be called from any thread, `predict` from one at a time."""

    @property
    def max_tokens(self) -> int:
        """The longest window that `predict` takes, special tokens not counted."""
        ...

    @property
    def separator_id(self) -> int:
        """The token that stands between a context and the text that it belongs to."""
        ...

    def encode(self, text: str) -> Encoding:
        """All of `text` as tokens: never truncated."""
        ...

    def predict(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One row of scores for each window of token ids, in order.

        Adds the special tokens and the padding itself.

        Raises:
            DetectorError: The runtime failed.
        """
        ...

    def warm_up(self) -> None:
        """Pay the cost of the first call now."""
        ...

    def close(self) -> None:
        """Give the model's memory back. No call may follow."""
        ...
