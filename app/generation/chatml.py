"""A conversation in ChatML, the format SmolLM2 was trained on, as token ids.

Knows nothing about payloads or generation. Written by hand rather than with the model's own
template for one reason: there, a text that contains `<|im_end|>` would end its message and could
speak as the system. Here markers are ids and texts are only ever text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from app.domain.errors import ConfigurationError

_SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as the model reads it."""

    role: Literal["system", "user", "assistant"]
    text: str


class ChatMl:
    """Turns conversations into prompts that end where the assistant begins. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        start, end = map(tokenizer.token_to_id, ("<|im_start|>", "<|im_end|>"))
        if start is None or end is None:
            raise ConfigurationError("the tokenizer has no ChatML markers")
        self._start, self._end = start, end

    def encode(self, turns: Iterable[Turn]) -> tuple[int, ...]:
        """Return the prompt. Without a system turn at its head it gets the model's usual one."""
        turns = list(turns)
        if not turns or turns[0].role != "system":
            turns.insert(0, Turn("system", _SYSTEM_PROMPT))
        token_ids: list[int] = []
        for turn in turns:
            token_ids += [self._start, *self._ids(f"{turn.role}\n{turn.text}"), self._end]
            token_ids += self._ids("\n")
        return (*token_ids, self._start, *self._ids("assistant\n"))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer that takes the names of special tokens in a text for plain text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer
