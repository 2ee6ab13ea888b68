"""Texts as a critic reads them: the tokens of an answer, and the prompt that stands before them.

Knows nothing about critics. The format is that of the embedded model, whoever wrote the answer.
"""

from __future__ import annotations

from typing import Final

from tokenizers import Tokenizer

from app.domain.chunker import both_ends
from app.generation.chatml import ChatMl, Turn
from app.generation.user_prompts import unread
from app.inference.backend import Encoding

_LONGEST_PROMPT: Final = 400
"""Characters of what a user said: both ends of more, as in the critic's training."""


class Answers:
    """Turns answers and what they answer into tokens. Thread-safe.

    Args:
        tokenizer: as `load_tokenizer` gives it: a marker in a text is plain text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._format = ChatMl(tokenizer)

    def prompt(self, question: str) -> tuple[int, ...]:
        """The chat up to where the assistant begins; nothing if nobody asked."""
        if not question:
            return ()
        return self._format.encode([Turn("user", both_ends(question, _LONGEST_PROMPT))])

    def encode(self, text: str) -> Encoding:
        """All of an answer, without anything around it."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return Encoding(encoded.ids, encoded.offsets, tuple(unread(text, encoded.offsets)))
