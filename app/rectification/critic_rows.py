"""A critic's view of texts that grow at different paces, such as the rows of a batch.

Knows nothing about where the texts come from. A text is compared with what was read of it before,
so a text that was rolled back, or replaced by another one under its key, is read right.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.rectification.critic_model import Critic

_PIECE = 128  # tokens of one text in one pass: what a long text takes at once stays small


@dataclass(slots=True)
class ReadText:
    """A row of the state, and the tokens that it has read."""

    row: int
    token_ids: list[int] = field(default_factory=list)


class CriticRows:
    """Reads only what is new since the last call. Not thread-safe; needs the critic in use mode."""

    def __init__(self, critic: Critic) -> None:
        self._critic = critic
        self._state = critic.empty_state()
        self._texts: dict[Hashable, ReadText] = {}
        self._free: list[int] = []  # rows that were forgotten

    @torch.no_grad()
    def q_values(self, texts: Mapping[Hashable, Sequence[int]]) -> Tensor:
        """Return the values of every next token of each text, (texts, vocabulary), in [-1, 0].

        The newest token of all texts is read at once; more news of one text before that, in
        pieces, and what another text begins with as well is copied from there.

        Raises:
            ValueError: A text has no token.
        """
        if not all(len(token_ids) for token_ids in texts.values()):
            raise ValueError("the critic needs at least one token of a text")
        if not texts:
            return self._critic.frequencies.new_zeros(0, self._critic.shape.vocabulary)
        known = len(self._texts) + len(self._free)
        self._state.reserve(max(known, len(self._texts.keys() | texts.keys())), 0)
        read = [self._caught_up(key, list(token_ids)) for key, token_ids in texts.items()]
        newest = [token_ids[-1] for token_ids in texts.values()]
        hidden = self._critic.read(
            torch.tensor(newest)[:, None],
            torch.tensor([len(text.token_ids) for text in read])[:, None],
            self._state,
            [text.row for text in read],
        )
        for text, token_id in zip(read, newest, strict=True):
            text.token_ids.append(token_id)
        return self._critic.q_values(hidden[:, -1])

    @torch.no_grad()
    def risks(self, key: Hashable, token_ids: Sequence[int]) -> Tensor:
        """Return -Q of the tokens that are new in a whole text, (new,), each before it was read.

        New are the tokens behind what this text and the one last read under the key begin with. The
        first token of a text has no risk of its own: nothing was said before it.
        """
        token_ids = list(token_ids)
        text = self._text(key)
        kept = _common(text.token_ids, token_ids)
        if kept == len(token_ids):
            del text.token_ids[kept:]
            return self._critic.frequencies.new_zeros(0)
        del text.token_ids[max(kept - 1, 0) :]  # the state before the news is needed once more
        states = torch.cat(list(self._read(text, token_ids)), dim=1)[0]
        tokens = torch.tensor(token_ids[-len(states) :], device=states.device)
        risks = -self._critic.q_of(states[:-1], tokens[1:])
        return risks if kept else torch.cat((risks.new_zeros(1), risks))

    def forget(self, key: Hashable) -> None:
        """Drop what is kept of a text; an unknown key is no error."""
        text = self._texts.pop(key, None)
        if text is None:
            return
        self._state.drop(text.row)
        self._free.append(text.row)
        if not self._texts:
            self._state.clear()
            self._free.clear()

    def _text(self, key: Hashable) -> ReadText:
        """What was read under a key; the lowest free row is given to a new one."""
        if key not in self._texts:
            row = min(self._free, default=len(self._texts))
            if self._free:
                self._free.remove(row)
            self._texts[key] = ReadText(row)
        return self._texts[key]

    def _caught_up(self, key: Hashable, token_ids: list[int]) -> ReadText:
        """The row of a text, after it has read all tokens but the newest."""
        text, before = self._text(key), token_ids[:-1]
        kept = _common(text.token_ids, before)
        if kept < len(before):
            source = max(self._texts.values(), key=lambda other: _common(other.token_ids, before))
            shared = _common(source.token_ids, before)
            if shared > kept:
                self._state.copy(source.row, text.row, shared)
                text.token_ids, kept = before[:shared], shared
        del text.token_ids[kept:]
        for _ in self._read(text, before):
            pass
        return text

    def _read(self, text: ReadText, token_ids: list[int]) -> Iterator[Tensor]:
        """Read on from where the row stands, piece by piece; what each leaves, (1, new, hidden)."""
        for start in range(len(text.token_ids), len(token_ids), _PIECE):
            piece = token_ids[start : start + _PIECE]
            positions = torch.arange(start, start + len(piece))[None]
            hidden = self._critic.read(torch.tensor([piece]), positions, self._state, [text.row])
            text.token_ids.extend(piece)
            yield hidden


def _common(read: list[int], token_ids: list[int]) -> int:
    """How many tokens both begin with."""
    if token_ids[: len(read)] == read:  # the usual case, at the speed of C
        return len(read)
    pairs = zip(read, token_ids, strict=False)
    different = (place for place, (old, new) in enumerate(pairs) if old != new)
    return next(different, min(len(read), len(token_ids)))
