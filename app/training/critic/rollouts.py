"""What the embedded language model says after a prompt, several times, as token ids.

Knows nothing about labels. Batches are kept on disk as they are written. Each one follows from its
prompts and the seed alone, so that a run that was stopped ends as if it had not been.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from app.training.critic.kept import Kept

STOPS: Final = (2, 0)
"""`<|im_end|>` and `<|endoftext|>`: the language model has finished."""

_TOP_P: Final = (0.9, 1.0)
"""From the published protocol's nucleus to all of the distribution, at temperature 1."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is written: `samples` for each prompt, of a length drawn for each batch."""

    samples: int
    shortest: int
    longest: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One batch's way of writing."""

    samples: int
    new_tokens: int
    top_p: float
    seed: int


class Author(Protocol):
    """Who writes."""

    def write(self, prompts: Sequence[Sequence[int]], ask: Ask) -> list[list[list[int]]]:
        """`ask.samples` continuations for each prompt, as token ids."""


def write_rollouts(
    prompts: Sequence[Sequence[int]],
    amount: Amount,
    *,
    cache: Path,
    author: Callable[[], Author],
    rows: int,
    seed: int,
) -> list[list[list[int]]]:
    """The rollouts of each prompt, in order; a finished one ends with its stop token.

    Args:
        prompts: Token ids.
        amount: How many and how long.
        cache: The file that batches are kept in.
        author: Makes the language model, once something is left to write.
        rows: How many rollouts are written at once.
        seed: Of the sampling.
    """
    size = max(1, rows // amount.samples)
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    keys = [_key(batch, amount, seed) for batch in batches]
    kept = Kept(cache)
    missing = [index for index, key in enumerate(keys) if key not in kept.known]
    writer = author() if missing else None
    for done, index in enumerate(missing, 1):
        assert writer is not None  # noqa: S101 - for the type checker
        new = writer.write(batches[index], _ask(keys[index], amount))
        kept.add({keys[index]: new})
        print(f"{cache.stem}: {done} of {len(missing)} batches written", flush=True)
    return [rollouts for key in keys for rollouts in kept.known[key]]


def _key(batch: Sequence[Sequence[int]], amount: Amount, seed: int) -> str:
    facts = [seed, *astuple(amount), [list(prompt) for prompt in batch]]
    return sha256(json.dumps(facts).encode()).hexdigest()


def _ask(key: str, amount: Amount) -> Ask:
    chance = random.Random(key)  # noqa: S311 - reproducible, no secret
    return Ask(
        samples=amount.samples,
        new_tokens=chance.randint(amount.shortest, amount.longest),
        top_p=chance.choice(_TOP_P),
        seed=chance.getrandbits(63),
    )


class LanguageModelAuthor:
    """The embedded language model: a prompt is read once for all its rollouts.

    In bfloat16, the faster type for many rows at once, on CPUs that know it and on accelerators.
    """

    def __init__(
        self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> None:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - only training has it

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model: Any = model.to(device).eval()
        self._device = torch.device(device)

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], ask: Ask) -> list[list[list[int]]]:
        """As the protocol says; reproducible on one kind of machine."""
        chance = torch.Generator(self._device).manual_seed(ask.seed)
        ids, mask = (each.to(self._device) for each in left_padded(prompts))
        places = (mask.cumsum(1) - 1).clamp(min=0)
        read = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            use_cache=True,
            logits_to_keep=1,
        )
        kept = read.past_key_values
        kept.batch_repeat_interleave(ask.samples)
        logits = read.logits[:, -1].repeat_interleave(ask.samples, 0)
        mask = mask.repeat_interleave(ask.samples, 0)
        length = mask.sum(1, keepdim=True)
        stops = torch.tensor(STOPS, device=self._device)
        written = [draw(logits, ask.top_p, chance)]
        ended = torch.isin(written[0], stops)
        while len(written) < ask.new_tokens and not bool(ended.all()):
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            read = self._model(
                input_ids=written[-1][:, None],
                attention_mask=mask,
                position_ids=length + len(written) - 1,
                past_key_values=kept,
                use_cache=True,
            )
            written.append(draw(read.logits[:, -1], ask.top_p, chance))
            ended |= torch.isin(written[-1], stops)
        rows = [_until_stop(row) for row in torch.stack(written, 1).tolist()]
        return [rows[at : at + ask.samples] for at in range(0, len(rows), ask.samples)]


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (rows, longest) each, the newest tokens side by side."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), STOPS[0])
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    return ids, mask


def draw(logits: Tensor, top_p: float, chance: torch.Generator) -> Tensor:
    """One token of each row, from the likeliest ones that hold `top_p` of the mass: (rows,).

    Tokens are drawn until one is among them: this spares the sorting of the whole vocabulary, which
    takes longer than the model itself.
    """
    probability = logits.float().softmax(-1)
    up_to = probability.cumsum(-1)
    drawn = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    while len(left):
        height = torch.rand(len(left), 1, generator=chance, device=logits.device)
        token = torch.searchsorted(up_to[left], height * up_to[left, -1:])
        token = token.clamp(max=logits.shape[1] - 1)
        each = probability[left]
        likelier = (each * (each > each.gather(1, token))).sum(-1)
        taken = likelier < top_p
        drawn[left[taken]] = token[taken, 0]
        left = left[~taken]
    return drawn


def _until_stop(row: list[int]) -> list[int]:
    stop = next((place for place, token in enumerate(row) if token in STOPS), len(row))
    return row[: stop + 1]
