"""The way back out of a dead end, for one text: which tokens to take back and not to try again.

Knows nothing about tensors or models: token ids and positions only. A position counts the tokens
generated so far, the prompt excluded.
"""

from __future__ import annotations

from collections.abc import Sequence


class DeadEnds:
    """A depth-first search with a budget. One instance per text; not thread-safe."""

    def __init__(self, limit: int) -> None:
        """Give up rather than take back more than `limit` tokens in total; 0 never goes back."""
        if limit < 0:
            raise ValueError("limit must be at least 0")
        self._budget = limit
        self._excluded: dict[int, int] = {}  # position -> the token that led to a dead end

    def excluded(self, position: int) -> frozenset[int]:
        """Return the token ids that must not be chosen at `position` of the text as it is now."""
        failed = self._excluded.get(position)
        return frozenset() if failed is None else frozenset({failed})

    def retreat(self, token_ids: Sequence[int]) -> int | None:
        """Return how many of the newest tokens to take back, or None: end the text.

        The oldest token that is taken back is excluded where it stood. A position that has failed
        before does not get a third token: it is taken back too.
        """
        position = len(token_ids) - 1
        while position in self._excluded:
            position -= 1
        steps = len(token_ids) - position
        if position < 0 or steps > self._budget:
            return None
        self._budget -= steps
        # What was excluded further on belonged to a text that no longer exists.
        self._excluded = {at: token for at, token in self._excluded.items() if at < position}
        self._excluded[position] = token_ids[position]
        return steps
