"""Continuous batching: requests join and leave the running batch between two steps of the model.

Knows nothing about threads or who listens. A step reads a piece of one waiting prompt and adds one
token to every running row, so that a long prompt delays its mates but never stops them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from app.domain.errors import UpstreamError
from app.generation.key_values import KeyValues
from app.generation.llama import Llama
from app.generation.prefixes import Prefixes, ReadPrompt
from app.generation.rectifier import Outcome, Rectifier
from app.generation.request import GenerationRequest
from app.generation.row import Listener, Row
from app.generation.text import Vocabulary

_PREFILL_TOKENS = 128  # of a prompt in one step: a third of a second on one core

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Prefill:
    """A prompt being read, apart from the batch; the critic reads it under this key."""

    listener: Listener
    cache: KeyValues
    read: int = 0


class Batch:
    """The rows that run and the one prompt that is being read. Used by one thread only."""

    def __init__(
        self,
        model: Llama,
        vocabulary: Vocabulary,
        stop_ids: Sequence[int],
        max_rows: int,
        kept_tokens: int = 0,
        *,
        rectifier: Rectifier | None = None,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._stop_ids = frozenset(stop_ids)
        self._max_rows = max_rows
        self._rows: list[Row] = []  # the row's number in the cache is its index here
        self._cache = model.empty_cache()
        self._prefill: Prefill | None = None
        self._prefixes = Prefixes(kept_tokens)
        self._rectifier = rectifier

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._rows) or self._prefill is not None

    def has_room(self, request: GenerationRequest) -> bool:
        """Whether this request could start now."""
        return self._prefill is None and len(self._rows) + request.choices <= self._max_rows

    def start(self, listener: Listener) -> None:
        """Begin to read a prompt. Only after `has_room` said yes."""
        self._prefill = Prefill(listener, self._model.empty_cache())

    @torch.inference_mode()
    def step(self) -> None:
        """Drop who left, read a piece of a prompt, add a token to each row. Never raises."""
        self._drop([row for row in self._rows if row.listener.cancelled])
        if self._prefill is not None:
            try:
                self._read(self._prefill)
            except Exception as error:  # noqa: BLE001 - one request must not end the loop
                self._fail([self._prefill.listener], error)
                self._end_prefill(self._prefill)
        if self._rows:
            try:
                scores = self._forward()
            except Exception as error:  # noqa: BLE001 - one batch must not end the loop
                self._fail([row.listener for row in self._rows], error)
                self._drop(list(self._rows))
            else:
                self._choose(self._rows, scores)

    def _read(self, prefill: Prefill) -> None:
        """Read the next piece of the prompt; after the last one its choices join the batch."""
        if prefill.listener.cancelled:
            self._end_prefill(prefill)
            return
        known = self._prefixes.get(prefill.listener.request.prompt_ids)
        prompt = known or self._read_on(prefill)
        if prompt is not None:
            prefill.listener.prompt_read(prompt.states)
            self._join(prefill.listener, prompt)
            self._end_prefill(prefill)

    def _end_prefill(self, prefill: Prefill) -> None:
        self._prefill = None
        if self._rectifier is not None:
            self._rectifier.forget(prefill)

    def _read_on(self, prefill: Prefill) -> ReadPrompt | None:
        """Read the next piece; what other prompts have read already is copied before the first."""
        token_ids = prefill.listener.request.prompt_ids
        if not prefill.read and (beginning := self._prefixes.longest(token_ids)):
            source, prefill.read = beginning
            prefill.cache.reserve(1, prefill.read)
            prefill.cache.copy_row(source, 0, 0, prefill.read)
        end = min(prefill.read + _PREFILL_TOKENS, len(token_ids))
        prefill.cache.reserve(1, end)
        states: list[Tensor] = []
        scores = self._model.forward(
            torch.tensor([token_ids[prefill.read : end]]),
            torch.arange(prefill.read, end)[None],
            prefill.cache,
            states,
        )
        prefill.read = end
        if self._rectifier is not None and prefill.listener.request.rectification:
            self._rectifier.read(prefill, token_ids[:end])
        if end < len(token_ids):
            return None
        prompt = ReadPrompt(token_ids, prefill.cache.kept(end), scores, torch.cat(states))
        if bool(scores.isfinite().all()):  # what went wrong must not spread to other prompts
            self._prefixes.put(prompt)
        return prompt

    def _join(self, listener: Listener, prompt: ReadPrompt) -> None:
        """Copy what was read to one row for each choice, and choose their first tokens."""
        choices, length = listener.request.choices, len(prompt.token_ids)
        if not choices:
            return
        first = len(self._rows)
        self._cache.reserve(first + choices, length)
        for row in range(first, first + choices):
            self._cache.copy_row(prompt.cache, 0, row, length)
        joined = [self._row(listener, choice) for choice in range(choices)]
        self._rows.extend(joined)
        self._choose(joined, prompt.scores.expand(choices, -1))

    def _row(self, listener: Listener, choice: int) -> Row:
        wish = listener.request.rectification
        if wish is None:
            return Row(listener, choice)
        if self._rectifier is None:
            raise RuntimeError("there is no critic to rectify by")
        return Row(listener, choice, self._rectifier.choice(wish))

    def _forward(self) -> Tensor:
        """Let every row read its newest token; (rows, vocabulary)."""
        positions = [len(row.token_ids) - 1 for row in self._rows]
        self._cache.reserve(len(self._rows), max(positions) + 1)
        newest = torch.tensor([row.token_ids[-1:] for row in self._rows])
        return self._model.forward(newest, torch.tensor(positions)[:, None], self._cache)

    def _choose(self, rows: Sequence[Row], scores: Tensor) -> None:
        """Turn scores (rows, vocabulary) into one token for each row.

        A row in a dead end gets none: it has fewer tokens instead, and the next step reads the
        newest of those that are left once more.
        """
        steps = self._rectifier.steps(rows, scores) if self._rectifier else {}
        done = []
        for row, row_scores in zip(rows, scores, strict=True):
            try:
                if not self._advance(row, row_scores, steps):
                    done.append(row)
            except Exception as error:  # noqa: BLE001 - one row must not end its mates
                self._fail([row.listener], error)
                done.append(row)
        self._drop(done)

    def _advance(self, row: Row, scores: Tensor, steps: Mapping[Row, Outcome]) -> bool:
        """Add a token to a row, or take some back. Returns whether it goes on."""
        rectified = row.rectified
        if rectified is None:
            token = row.choose(scores)
        else:
            step = steps[row]
            if isinstance(step, Exception):
                raise step
            if step.dead_end:
                return row.turn_back(rectified)
            token = row.choose_rectified(step.log_probs)
            rectified.chose(row.new_tokens, step.moved, changed=step.changed)
        return row.take(token, self._vocabulary[token], ends=token in self._stop_ids)

    def _drop(self, rows: Sequence[Row]) -> None:
        for row in rows:
            index, last = self._rows.index(row), len(self._rows) - 1
            self._cache.remove_row(index, last)
            self._rows[index] = self._rows[last]
            self._rows.pop()
            if self._rectifier is not None:
                self._rectifier.forget(row)
        if not self._rows:
            self._cache.reserve(0, 0)

    def _fail(self, listeners: Sequence[Listener], error: Exception) -> None:
        _log.error("generation_failed", error=type(error).__name__, requests=len(listeners))
        for listener in listeners:
            failure = UpstreamError("the embedded model failed on this request")
            failure.__cause__ = error
            listener.fail(failure)
