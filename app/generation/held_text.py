"""Text of which the newest tokens can be taken back, since they have not been sent.

Knows nothing about models or batches; sans-IO, one `HeldText` per choice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from app.generation.text import TextAssembler


class HeldText:
    """A `TextAssembler` whose text leaves some tokens late. Stop strings are seen at once."""

    def __init__(self, stop: Sequence[str], tokens: int) -> None:
        """Hold back the text of the newest `tokens` tokens; with 0 nothing can be taken back."""
        self._assembler = TextAssembler(stop)
        self._tokens = tokens
        # For each token held: what stood before it, and the text that came with it.
        self._held: deque[tuple[TextAssembler, str]] = deque()

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: nothing more is taken."""
        return self._assembler.stopped

    def push(self, piece: bytes) -> str:
        """Take the bytes of one token; return the text that may leave now."""
        if not self._tokens:
            return self._assembler.push(piece)
        before = self._assembler.copy()
        self._held.append((before, self._assembler.push(piece)))
        return self._held.popleft()[1] if len(self._held) > self._tokens else ""

    def take_back(self, tokens: int) -> None:
        """Undo the newest tokens; for good: so many fewer are held from now on."""
        for _ in range(tokens):
            self._assembler, _ = self._held.pop()
        self._tokens -= tokens

    def flush(self) -> str:
        """Return what was held; half a character is dropped."""
        text = "".join(text for _, text in self._held)
        self._held.clear()
        return text + self._assembler.flush()
