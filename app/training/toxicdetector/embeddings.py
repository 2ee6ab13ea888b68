"""Layer-wise last-token embeddings of the embedded language model, kept on disk.

Knows nothing about labels or detectors. The model is the one that serves, prompts of one length go
through it together, and what all prompts begin with is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from app.generation.key_values import KeyValues
from app.generation.llama import Llama
from app.training.prompt_detector.embeddings import EmbeddingCache

Prompt = Sequence[int]

_SHARD: Final = 512  # prompts
_BATCH_TOKENS: Final = 3072


def embed(
    prompts: Sequence[Prompt], *, cache: EmbeddingCache, load: Callable[[], Llama]
) -> NDArray[np.float16]:
    """What every layer leaves at the last token of each prompt: (prompts, layers, hidden).

    Computes and keeps what the cache lacks, shard by shard: a run that was stopped goes on where it
    was. In bfloat16, which nearly doubles the speed and leaves a cosine of 0.9999 to float32.
    """
    missing = cache.missing(prompts)
    if missing:
        model = load()
        keys = list(missing)
        for start in range(0, len(keys), _SHARD):
            shard = sorted(keys[start : start + _SHARD], key=lambda key: len(missing[key]))
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                rows = last_states(model, [missing[key] for key in shard])
            cache.add(shard, rows)
            print(f"embedded {start + len(shard)} of {len(keys)} prompts", flush=True)
    return cache.get(prompts)


def last_states(model: Llama, prompts: Sequence[Prompt]) -> NDArray[np.float16]:
    """Embeddings of prompts that are sorted by length: (prompts, layers, hidden)."""
    shared = _common(prompts)
    beginning = model.empty_cache()
    if shared:
        beginning.reserve(1, shared)
        ids = torch.tensor([list(prompts[0][:shared])])
        model.forward(ids, torch.arange(shared)[None], beginning)
    return np.concatenate([_states(model, batch, beginning, shared) for batch in _batches(prompts)])


def _states(
    model: Llama, batch: Sequence[Prompt], beginning: KeyValues, shared: int
) -> NDArray[np.float16]:
    length = len(batch[0])
    cache = model.empty_cache()
    cache.reserve(len(batch), length)
    for row in range(len(batch)):
        cache.copy_row(beginning, 0, row, shared)
    states: list[torch.Tensor] = []
    positions = torch.arange(shared, length).expand(len(batch), -1)
    model.forward(torch.tensor([list(each[shared:]) for each in batch]), positions, cache, states)
    return torch.stack(states, dim=1).to(torch.float16).numpy()


def _common(prompts: Sequence[Prompt]) -> int:
    """How many tokens all prompts share, the last token of each left out."""
    shared = 0
    for tokens in zip(*(each[:-1] for each in prompts), strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    for length, group in groupby(prompts, key=len):
        same = list(group)
        most = max(1, _BATCH_TOKENS // length)
        for start in range(0, len(same), most):
            yield same[start : start + most]
