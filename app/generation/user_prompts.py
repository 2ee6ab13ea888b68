"""Texts as prompts that the model would answer if a user said them, cut where they are long.

Knows nothing about running the model. A text that fits one window gives exactly the prompt of a
chat that begins with it, so what is read for one of the two need not be read for the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from app.domain.chunker import windows
from app.domain.detection import Gap, Unscanned
from app.generation.chatml import ChatMl, Turn


@dataclass(frozen=True, slots=True)
class UserPrompt:
    """The prompt for `text[start:end]` of a text."""

    token_ids: tuple[int, ...]
    start: int
    end: int


class UserPrompts:
    """Cuts texts and puts them into the chat format. Thread-safe.

    Args:
        tokenizer: the model's, as `load_tokenizer` gives it.
        window: tokens of text in one prompt at most.
        overlap: tokens that two neighbours share.
    """

    def __init__(self, tokenizer: Tokenizer, *, window: int, overlap: int) -> None:
        self._tokenizer = tokenizer
        self._format = ChatMl(tokenizer)
        self._window = window
        self._overlap = overlap

    def encode(self, text: str) -> tuple[list[UserPrompt], tuple[Gap, ...]]:
        """All of `text` as prompts, and the stretches that the vocabulary has no token for."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        spans = windows(len(offsets), self._window, self._overlap)
        gaps = tuple(unread(text, offsets))
        if len(spans) == 1:
            return [self._prompt(text, 0, len(text))], gaps
        return [
            self._prompt(text, offsets[first][0], offsets[last - 1][1]) for first, last in spans
        ], gaps

    def _prompt(self, text: str, start: int, end: int) -> UserPrompt:
        return UserPrompt(self._format.encode([Turn("user", text[start:end])]), start, end)


def unread(text: str, offsets: Sequence[tuple[int, int]]) -> Iterator[Gap]:
    """Between tokens there is nothing but space and characters that were dropped."""
    read = 0
    for start, end in (*offsets, (len(text), len(text))):
        if start > read and text[read:start].strip():
            yield Gap(read, start, Unscanned.UNKNOWN_TOKEN)
        read = max(read, end)
