"""What is asked of the engine and what it answers, as plain values.

Knows no tensors, no threads and no wire format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from scores. A temperature of 0 is greedy; a `top_k` of 0 is off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be continued `choices` times. `max_tokens` is an upper bound, not a promise.

    With no choices the prompt is only read.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    choices: int = 1


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one choice, never half a character; `tokens` counts all its tokens so far."""

    choice: int
    text: str
    tokens: int
    finish_reason: FinishReason | None = None
