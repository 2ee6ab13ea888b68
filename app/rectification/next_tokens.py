"""What an API with top log-probabilities says: the next tokens, and what might have stood there.

Knows nothing about HTTP or critics, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NextToken:
    """One token as it was drawn, and the likeliest ones of its place with log-probabilities.

    The drawn one need not be among them. They are those of the model itself, before temperature
    and filters.
    """

    token_id: int
    alternatives: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class NextChunk:
    """What one call gave; `ended` says that the model would say nothing after the last token."""

    tokens: tuple[NextToken, ...]
    ended: bool


class NextTokens(Protocol):
    """A model that can be asked to go on with a text. The text is sent whole, each time."""

    async def __call__(self, token_ids: Sequence[int], count: int) -> NextChunk:
        """Draw at most `count` tokens; fewer, or none, only where the text ends.

        Raises:
            UpstreamError: There was no answer.
        """
        ...
