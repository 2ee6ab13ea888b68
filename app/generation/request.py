"""What is asked of the engine and what it answers, as plain values.

Knows no tensors, no threads and no wire format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.rectification.steering import Control

FinishReason = Literal["stop", "length", "refused"]


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
class Rectification:
    """How the choices of a request are steered, and the name of the policy that demands it.

    At most `rollback_tokens` tokens of a choice are taken back to get out of dead ends; the text of
    as many of its newest ones is not sent yet.
    """

    control: Control
    rollback_tokens: int = 0
    policy: str = ""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be continued `choices` times. `max_tokens` is an upper bound, not a promise.

    With no choices the prompt is only read. Without `rectification` no critic is asked.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    choices: int = 1
    rectification: Rectification | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """What rectification did to one choice; token 0 of `changed` is the first of the answer."""

    steps: int
    changed: tuple[int, ...]
    mass_moved: float
    dead_ends: int
    rollbacks: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one choice, never half a character; `tokens` counts all its tokens so far.

    A choice that was rectified ends with a `trace`.
    """

    choice: int
    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    trace: Trace | None = None
