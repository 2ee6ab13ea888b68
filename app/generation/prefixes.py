"""Prompts that were read lately, kept so that what begins like them need not be read again.

Knows nothing about requests. A detector reads a prompt before the chat is admitted, and the next
turn of a chat begins with the one before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from app.generation.key_values import KeyValues

_MAX_PROMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A whole prompt as the model has read it."""

    token_ids: tuple[int, ...]
    cache: KeyValues  # one row
    scores: Tensor  # of the next token, (1, vocabulary)
    states: Tensor  # what each layer left at the last token, (layers, hidden)


class Prefixes:
    """The latest prompts, bounded in number and in tokens. Used by one thread only."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._prompts: OrderedDict[tuple[int, ...], ReadPrompt] = OrderedDict()

    def get(self, token_ids: tuple[int, ...]) -> ReadPrompt | None:
        """This very prompt."""
        found = self._prompts.get(token_ids)
        if found is not None:
            self._prompts.move_to_end(token_ids)
        return found

    def longest(self, token_ids: tuple[int, ...]) -> tuple[KeyValues, int] | None:
        """What shares the most tokens with the beginning of a prompt, and how many.

        The prompt's last token is never among them: what follows it has to be computed.
        """
        best, most = None, 0
        for known in self._prompts.values():
            if (shared := _shared(known.token_ids, token_ids[:-1])) > most:
                best, most = known, shared
        if best is None:
            return None
        self._prompts.move_to_end(best.token_ids)
        return best.cache, most

    def put(self, prompt: ReadPrompt) -> None:
        """Keep a prompt, and forget those that were used least lately if there is no room."""
        if len(prompt.token_ids) > self._max_tokens:
            return
        self._prompts[prompt.token_ids] = prompt
        while len(self._prompts) > _MAX_PROMPTS or sum(map(len, self._prompts)) > self._max_tokens:
            self._prompts.popitem(last=False)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return index
    return min(len(one), len(other))
