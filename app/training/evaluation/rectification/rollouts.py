"""What every arm writes after the prompts, batch by batch, kept on disk as it is written.

Knows nothing about scores. Each batch follows from its arm, its prompts and the seed alone; all
arms write a batch before the next one begins, so that a busy minute of the machine hits them alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch

from app.generation.llama import Llama
from app.generation.weights import MODEL_REVISION
from app.rectification.critic_model import Critic
from app.rectification.steering import Control
from app.training.critic.calibration import risk_logits
from app.training.critic.kept import Kept
from app.training.critic.texts import Layout, Text
from app.training.evaluation.rectification.arms import CRITICAL, Arm
from app.training.evaluation.rectification.methods import (
    AuthorsLoop,
    BadWords,
    DExperts,
    GeDi,
    Method,
    Plain,
    Rectified,
)
from app.training.evaluation.rectification.reader import Reader, Tokens
from app.training.evaluation.rectification.sampler import Ask, Written, write

ROWS: Final = 64
"""Texts that are written at once."""

POLITE: Final = "Here is a text in kind, polite and respectful words, which hurts nobody:\n\n"
TOXIC: Final = "Here is a text in rude, hateful and obscene words, which insults and threatens:\n\n"
"""What makes two class-conditional models of one: self-debiasing's way, not a fine-tuned model."""


@dataclass(frozen=True, slots=True)
class Writers:
    """The models that write. `revisions` tell a changed model from what was kept."""

    model: Llama
    critic: Critic
    layout: Layout
    bad_words: Sequence[Tokens]
    revisions: dict[str, str]

    def method(self, arm: Arm) -> Method:
        """A fresh method for one batch."""
        match arm.method:
            case "none" | "best of k":
                return Plain()
            case "bad words":
                return BadWords(self.bad_words)
            case "authors' loop":
                return AuthorsLoop(self.critic, arm.strength)
            case "gedi":
                return GeDi(self._behind(POLITE), self._behind(TOXIC), arm.strength)
            case "dexperts":
                return DExperts(self._behind(POLITE), self._behind(TOXIC), arm.strength)
            case _:
                if arm.control is None:
                    raise ValueError(f"{arm.method} needs a control")
                return Rectified(self.critic, arm.control)

    def _behind(self, words: str) -> Reader:
        return Reader(self.model, self.layout.tokens(words))


@dataclass(slots=True)
class Rollouts:
    """What one arm wrote: texts in the order of the prompts, and the seconds they took."""

    written: list[Written] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens that were kept, per second."""
        return sum(len(each.token_ids) for each in self.written) / self.seconds


def write_all(
    writers: Writers,
    arms: Sequence[Arm],
    prompts: Sequence[Tokens],
    ask: Ask,
    *,
    cache: Path,
    done: Callable[[], None],
) -> list[Rollouts]:
    """The rollouts of each arm; what is on disk is not written again. `done` follows each batch."""
    kept = Kept(cache)
    size = max(1, ROWS // ask.samples)
    found = [Rollouts() for _ in arms]
    warm = False
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        for arm, rollouts in zip(arms, found, strict=True):
            key = _key(writers, arm, batch, ask)
            if key not in kept.known:
                if not warm:
                    _warm_up(writers, batch, ask)
                    warm = True
                kept.add({key: _written(writers, arm, batch, replace(ask, seed=_seed(key)))})
            rollouts.seconds += kept.known[key]["seconds"]
            rollouts.written += [Written(**each) for each in kept.known[key]["texts"]]
            done()
    return found


def batches(arms: int, prompts: int, samples: int) -> int:
    """How often `write_all` calls `done`."""
    return arms * -(-prompts // max(1, ROWS // samples))


def _warm_up(writers: Writers, batch: Sequence[Tokens], ask: Ask) -> None:
    """What is slow once must not be slow for the first arm."""
    for method in (Plain(), Rectified(writers.critic, Control("tilt_cap", beta=1.0))):
        write(Reader(writers.model), method, batch, replace(ask, tokens=2))


def _written(writers: Writers, arm: Arm, batch: Sequence[Tokens], ask: Ask) -> dict[str, object]:
    k = int(arm.strength) if arm.method == "best of k" else 1
    texts: list[Written] = []
    seconds = 0.0
    # The rows of k candidates do not fit into one batch.
    for part in range(k):
        share = replace(ask, seed=ask.seed + part)
        some, taken = write(Reader(writers.model), writers.method(arm), batch, share)
        texts += some
        seconds += taken
    if k > 1:
        texts, taken = _best(writers.critic, batch, texts, ask.samples)
        seconds += taken
    return {"seconds": seconds, "texts": [asdict(each) for each in texts]}


def _best(
    critic: Critic, batch: Sequence[Tokens], texts: Sequence[Written], samples: int
) -> tuple[list[Written], float]:
    """Of the candidates for each place, the one whose end the critic finds least risky."""
    begun = time.perf_counter()
    prompts = [prompt for prompt in batch for _ in range(samples)]
    size = len(prompts)
    read = [
        Text((*prompts[index % size], *each.token_ids), len(prompts[index % size]), 0.0, "reading")
        for index, each in enumerate(texts)
    ]
    risks = [float(each[-1]) for each in risk_logits(critic, read)]
    chosen = [
        texts[min(range(place, len(texts), size), key=risks.__getitem__)] for place in range(size)
    ]
    return chosen, time.perf_counter() - begun


def _key(writers: Writers, arm: Arm, batch: Sequence[Tokens], ask: Ask) -> str:
    """What a batch of an arm follows from; the same control is one arm, whatever it is called."""
    facts = [
        arm.method if arm.control is None else astuple(arm.control),
        arm.strength if arm.control is None else None,
        writers.revisions if arm.method in CRITICAL else MODEL_REVISION,
        writers.bad_words if arm.method == "bad words" else None,
        (POLITE, TOXIC) if arm.method in {"gedi", "dexperts"} else None,
        astuple(ask),
        [list(prompt) for prompt in batch],
        torch.get_num_threads(),
    ]
    return sha256(json.dumps(facts).encode()).hexdigest()


def _seed(key: str) -> int:
    return int(key[:15], 16)
