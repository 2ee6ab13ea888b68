"""Tokens to text: whole characters only, and stop strings held back until they are decided.

Knows nothing about models or batches; sans-IO, one `TextAssembler` per choice.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from app.domain.errors import ConfigurationError


class Vocabulary:
    """The bytes behind every token id of a byte-level BPE tokenizer; special tokens have none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.get_added_tokens_decoder()
        byte_of = _byte_of_character()
        self._pieces: list[bytes] = [b""] * tokenizer.get_vocab_size(with_added_tokens=True)
        for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id in special:
                continue
            try:
                self._pieces[token_id] = bytes(byte_of[character] for character in token)
            except KeyError:
                raise ConfigurationError("the tokenizer is not a byte-level BPE") from None

    def __getitem__(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable bytes stand for themselves, the others for U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


class TextAssembler:
    """Releases text that is complete and cannot be the beginning of a stop string.

    What is released does not depend on how the bytes were split. After `stopped`, nothing more is.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def copy(self) -> TextAssembler:
        """Another one that stands where this one stands."""
        twin = TextAssembler(self._stop)
        twin.stopped, twin._held = self.stopped, self._held
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def push(self, piece: bytes) -> str:
        """Take the bytes of one token; return the text that may leave now."""
        if self.stopped:
            return ""
        # One character at a time: a token may hold the ends of two stop strings.
        return "".join(self._release(self._decoder.decode(piece)))

    def flush(self) -> str:
        """Return what was held for a stop string that did not come; half a character is dropped."""
        released, self._held = self._held, ""
        return "" if self.stopped else released

    def _release(self, text: str) -> Iterable[str]:
        for character in text:
            self._held += character
            complete = [stop for stop in self._stop if self._held.endswith(stop)]
            if complete:
                self.stopped = True
                yield self._held[: -len(max(complete, key=len))]
                self._held = ""
                return
            keep = self._undecided()
            yield self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]

    def _undecided(self) -> int:
        """Length of the longest end of the held text that a stop string could begin with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
