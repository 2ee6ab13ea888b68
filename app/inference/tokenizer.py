"""A model's tokenizer: text to tokens with offsets, nothing truncated, nothing hidden.

Knows nothing about models or windows.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from app.domain.detection import Gap, Unscanned
from app.domain.errors import ConfigurationError
from app.inference.artefact import SpecialTokens
from app.inference.backend import Encoding


class TextTokenizer:
    """Reads `tokenizer.json`. Safe to call from any thread.

    Raises:
        ConfigurationError: The file is no tokenizer, hides text, or lacks a special token.
    """

    def __init__(self, path: Path, special: SpecialTokens | None = None) -> None:
        special = special or SpecialTokens()
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises nothing more specific
            raise ConfigurationError(f"{path} is not a tokenizer") from exc
        if self._tokenizer.truncation is not None or self._tokenizer.padding is not None:
            raise ConfigurationError(f"{path.name} truncates or pads: text would be hidden")
        self._tokenizer.encode_special_tokens = True  # a typed "[SEP]" is text like any other
        self.start_id = self._required(special.start)
        self.separator_id = self._required(special.separator)
        self.end_id = self._required(special.end)
        self.padding_id = self._required(special.padding)
        self._unknown_id = None if special.unknown is None else self._required(special.unknown)

    def encode(self, text: str) -> Encoding:
        """All of `text`, without special tokens; characters without a token become gaps."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        offsets: list[tuple[int, int]] = encoded.offsets
        gaps = tuple(
            Gap(start, end, Unscanned.UNKNOWN_TOKEN)
            for token, (start, end) in zip(encoded.ids, offsets, strict=True)
            if token == self._unknown_id
        )
        return Encoding(ids=encoded.ids, offsets=offsets, gaps=gaps)

    def _required(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ConfigurationError(f"the tokenizer has no token {token}")
        return int(found)
