"""The embedded language model as training uses it: prompts in, embeddings out, loaded when needed.

Knows nothing about labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.generation.chatml import load_tokenizer
from app.generation.llama import Llama
from app.generation.user_prompts import UserPrompts
from app.generation.weights import prepare_weights
from app.training.prompt_detector.embeddings import EmbeddingCache
from app.training.toxicdetector.embeddings import embed
from app.training.toxicdetector.prompts import OVERLAP, WINDOW, Windows, windows_of


class LanguageModel:
    """What the trainer asks of it.

    Args:
        weights: where the converted weights are kept.
        cache: where embeddings are kept.
    """

    def __init__(self, weights: Path, cache: Path) -> None:
        self.folder = prepare_weights(weights)
        self._prompts = UserPrompts(load_tokenizer(self.folder), window=WINDOW, overlap=OVERLAP)
        self._cache = EmbeddingCache(cache)

    @cached_property
    def llama(self) -> Llama:
        """The model itself."""
        return Llama.load(self.folder)

    def windows(self, texts: Sequence[str], *, ends: bool) -> tuple[Windows, NDArray[np.float16]]:
        """Prompts of each text, and their embeddings: (prompts, layers, hidden)."""
        windows = windows_of(texts, self._prompts, ends=ends)
        states = embed(windows.token_ids, cache=self._cache, load=lambda: self.llama)
        return windows, states

    def firsts(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """The embedding of each text's first window: what a method without windows reads."""
        windows, states = self.windows(texts, ends=True)
        found: NDArray[np.float16] = states[np.unique(windows.owner, return_index=True)[1]]
        return found

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Scores of the next token from the last layer's states."""
        return self.llama.scores(states)
