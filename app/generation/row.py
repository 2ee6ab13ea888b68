"""One choice being continued: its tokens, its sampler, its text, and who listens.

Knows nothing about models, nor about the other rows of the batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from app.domain.errors import SluicewayError
from app.generation.held_text import HeldText
from app.generation.rectified_choice import RectifiedChoice
from app.generation.request import Delta, FinishReason, GenerationRequest
from app.generation.sampling import Sampler
from app.rectification.sampling import Sampling


class Listener(Protocol):
    """Where the deltas of one request go; called from the thread that steps."""

    @property
    def request(self) -> GenerationRequest:
        """What is asked for."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether nobody listens any more."""
        ...

    def put(self, delta: Delta) -> None:
        """Take the next piece; each choice ends with one that has a finish reason."""
        ...

    def prompt_read(self, states: Tensor) -> None:
        """Learn that the prompt was read, and what each layer left at its last token."""
        ...

    def fail(self, error: SluicewayError) -> None:
        """Take the error that ends the whole request. Later calls change nothing."""
        ...


class Row:
    """One choice. `rectified` is there where its request asks for it."""

    def __init__(
        self, listener: Listener, choice: int, rectified: RectifiedChoice | None = None
    ) -> None:
        request = listener.request
        self.listener = listener
        self.token_ids = list(request.prompt_ids)
        self.rectified = rectified
        self._choice = choice
        self._sampler = Sampler(request.sampling, choice)
        held = request.rectification.rollback_tokens if request.rectification else 0
        self._text = HeldText(request.stop, held)

    @property
    def new_tokens(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.token_ids) - len(self.listener.request.prompt_ids)

    @property
    def sampling(self) -> Sampling:
        """What a rectified row is drawn from."""
        return self._sampler.rectified

    def choose(self, scores: Tensor) -> int:
        """Choose the next token by this choice's own sampler."""
        return self._sampler.choose(scores)

    def open_scores(self, scores: Tensor) -> Tensor:
        """The scores less the penalties, without the tokens that led to a dead end here."""
        scores = self._sampler.penalised(scores)
        excluded = self.rectified.excluded(self.new_tokens) if self.rectified else ()
        return scores.index_fill(0, torch.tensor([*excluded]), -torch.inf) if excluded else scores

    def choose_rectified(self, log_probs: Tensor) -> int:
        """Choose the next token from the log-probabilities as they are."""
        return self._sampler.choose_rectified(log_probs)

    def take(self, token: int, piece: bytes, *, ends: bool) -> bool:
        """Add a chosen token and tell the listener. Returns whether the row goes on."""
        self.token_ids.append(token)
        text = "" if ends else self._text.push(piece)
        finish: FinishReason | None = None
        if ends or self._text.stopped:
            finish = "stop"
        elif self.new_tokens >= self.listener.request.max_tokens:
            finish = "length"
        if finish:
            text += self._text.flush()
        if text or finish:
            self._tell(text, finish)
        return finish is None

    def turn_back(self, rectified: RectifiedChoice) -> bool:
        """Take back what led to a dead end, or refuse. Returns whether the row goes on."""
        tokens = rectified.retreat(self.token_ids[len(self.listener.request.prompt_ids) :])
        if tokens is None:
            self._tell("", "refused")  # the text that was held led here: it never leaves
            return False
        self._sampler.take_back(self.token_ids[-tokens:])
        self._text.take_back(tokens)
        del self.token_ids[-tokens:]
        return True

    def _tell(self, text: str, finish: FinishReason | None) -> None:
        trace = self.rectified.trace() if self.rectified and finish else None
        self.listener.put(Delta(self._choice, text, self.new_tokens, finish, trace))
