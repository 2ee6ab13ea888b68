"""What rectification did to one choice, and its way back out of dead ends.

Knows nothing about tensors or batches. A position counts the new tokens, the prompt excluded.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.generation.request import Rectification, Trace
from app.metrics import Metrics
from app.rectification.dead_ends import DeadEnds


class RectifiedChoice:
    """The account of one choice; each step is counted under its policy as well."""

    def __init__(self, wish: Rectification, metrics: Metrics) -> None:
        self.control = wish.control
        self.policy = metrics.policy_label(wish.policy)
        self._metrics = metrics
        self._dead_ends = DeadEnds(wish.rollback_tokens)
        self._steps = 0
        self._changed: list[int] = []
        self._moved = 0.0
        self._met = 0
        self._taken_back = 0

    def excluded(self, position: int) -> frozenset[int]:
        """The tokens that led to a dead end when they stood there."""
        return self._dead_ends.excluded(position)

    def chose(self, position: int, moved: float, *, changed: bool) -> None:
        """Note the token at a position and how much probability was moved before it was drawn."""
        self._steps += 1
        if changed:
            self._changed.append(position)
            self._moved += moved
            self._metrics.rectification_mass_moved.labels(policy=self.policy).inc(moved)
        self._metrics.rectified_steps.labels(
            policy=self.policy, changed="yes" if changed else "no"
        ).inc()

    def retreat(self, token_ids: Sequence[int]) -> int | None:
        """How many of these new tokens to take back out of a dead end; None ends the choice."""
        tokens = self._dead_ends.retreat(token_ids)
        self._met += 1
        self._metrics.rectification_dead_ends.labels(
            policy=self.policy, outcome="refusal" if tokens is None else "rollback"
        ).inc()
        if tokens is not None:
            self._taken_back += tokens
            self._metrics.rectification_rollbacks.labels(policy=self.policy).inc(tokens)
            left = len(token_ids) - tokens
            self._changed = [position for position in self._changed if position < left]
        return tokens

    def trace(self) -> Trace:
        """What was done so far; `changed` names no token that was taken back."""
        return Trace(self._steps, tuple(self._changed), self._moved, self._met, self._taken_back)
