"""Rectification inside `generate` of transformers.

Knows nothing about models or tokenizers: token ids and scores in, scores out.

**Where it stands.** `generate` runs the processors that it is given before its own temperature,
top-k and top-p. A cap that is put on scores before those does not hold for what is drawn: they
divide and cut the capped scores again. So the Rectifier applies temperature, top-k and top-p
itself, caps what is drawn from, and `generate` is told to apply none:

    rectifier = Rectifier(CriticRows(critic), control, pad_token_id, Sampling(0.7, top_p=0.9))
    model.generate(**inputs, logits_processor=[rectifier], **rectifier.settings)

It must be the last processor of the list. Penalties, bad words and other options of `generate` that
are not in `settings` run before it and are fine; `watermarking_config` and beams run after it and
break the cap.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor
from typing_extensions import override

from app.rectification.sampling import Sampling, cut, divisors
from app.rectification.steering import Control, Steered, TextValues, ended, steer

_NO_FILTER: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "top_h": None,
        "min_p": None,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
    }
)


@dataclass(slots=True)
class RowTrace:
    """What was done to one row since generation began; positions count its new tokens."""

    steps: int = 0
    changed: list[int] = field(default_factory=list)
    moved: float = 0.0
    dead_ends: int = 0


class Rectifier(LogitsProcessor):
    """Steers every row of a batch; for greedy decoding and for sampling, not for beams.

    One instance may serve one `generate` after another, never two at once. `trace` tells of the
    latest.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        values: TextValues,
        control: Control,
        pad_token_id: int,
        sampling: Sampling | None = None,
        end_token_id: int | None = None,
    ) -> None:
        """Rectify with one control for all rows.

        Args:
            values: the critic's view of the texts, for this instance alone.
            control: mode and strength.
            pad_token_id: fills rows at the left; it is not part of their text.
            sampling: what to sample from; left out, the model's own distribution.
            end_token_id: ends a row in a dead end; left out, such a row goes on with the caps
                normalised. A processor cannot take tokens back.
        """
        self._values = values
        self._control = control
        self._pad_token_id = pad_token_id
        self._sampling = sampling or Sampling()
        self._end_token_id = end_token_id
        self._prompt_length = 0
        self._seen: Tensor | None = None
        self.trace: list[RowTrace] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What to pass to `generate` so that it draws from exactly what the Rectifier returns."""
        return {"do_sample": not self._sampling.greedy, "num_beams": 1, **_NO_FILTER}

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._follow(input_ids)
        rows = len(input_ids)
        samplings = [self._sampling] * rows
        if self._control.mode == "off":
            self._note(input_ids, None)
            return cut(scores / divisors(samplings, scores.device), samplings)
        texts: dict[Hashable, Sequence[int]] = {
            row: self._text(ids) for row, ids in enumerate(input_ids.tolist())
        }
        q_values = self._values.q_values(texts).to(scores.device)
        steered = steer(scores, q_values, [self._control] * rows, samplings)
        self._note(input_ids, steered)
        return ended(steered.log_probs, steered.dead_ends, self._end_token_id)

    def _follow(self, input_ids: Tensor) -> None:
        """Start anew unless the texts are those of the last step, each with one more token."""
        seen = self._seen
        self._seen = input_ids.clone()
        if seen is not None and torch.equal(input_ids[:, :-1], seen):
            return
        for row in range(len(self.trace)):
            self._values.forget(row)
        self._prompt_length = input_ids.shape[1]
        self.trace = [RowTrace() for _ in input_ids]

    def _text(self, ids: list[int]) -> list[int]:
        """A row without the padding at its left; never empty."""
        start = 0
        while start < len(ids) - 1 and ids[start] == self._pad_token_id:
            start += 1
        return ids[start:]

    def _note(self, input_ids: Tensor, steered: Steered | None) -> None:
        position = input_ids.shape[1] - self._prompt_length
        # `generate` goes on filling rows that have ended with padding: that is no step of theirs.
        going = ((input_ids[:, -1] != self._pad_token_id) | (position == 0)).tolist()
        changed = steered.changed.tolist() if steered else [False] * len(going)
        for row, trace in enumerate(self.trace):
            trace.steps += going[row]
            if steered is not None and going[row] and changed[row]:
                trace.changed.append(position)
                trace.moved += float(steered.moved[row])
                trace.dead_ends += int(steered.dead_ends[row])
