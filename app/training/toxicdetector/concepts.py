"""The concept bank, and its augmentation by restatements that differ enough from one another.

Knows nothing about the language model. The paper lets a strong one write the concepts and their
restatements and compares them by BGE-M3; here both stand in a file, written by hand, and the
frozen sentence encoder compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer

from app.training.prompt_detector.embeddings import encoder_files, load_encoder

Bank = Mapping[str, tuple[str, ...]]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]

SIMILAR: Final = 0.8
MOST: Final = 5
"""Concepts of a scenario, as in the paper's code."""

PAPER_SCENARIOS: Final = 8
"""The first scenarios of the bank are those of the paper's data."""


def load_bank(path: Path, embed: Embed) -> Bank:
    """Read the bank; of each scenario keep the concept and the restatements that add something."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = [(entry["concept"], *entry["candidates"]) for entry in entries.values()]
    vectors = embed([sentence for group in groups for sentence in group])
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return {
        scenario: augmented(group, part)
        for scenario, group, part in zip(entries, groups, np.split(vectors, ends), strict=True)
    }


def augmented(sentences: Sequence[str], vectors: NDArray[np.float32]) -> tuple[str, ...]:
    """The first sentence and, in order, each that is unlike all kept before it, `MOST` at most."""
    kept: list[int] = []
    for index, vector in enumerate(vectors):
        if len(kept) < MOST and all(float(vector @ vectors[other]) < SIMILAR for other in kept):
            kept.append(index)
    return tuple(sentences[index] for index in kept)


def sentence_vectors(sentences: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors of the frozen sentence encoder: the mean over the tokens of its last layer."""
    import torch  # noqa: PLC0415 - only training has it

    files = encoder_files()
    tokenizer = Tokenizer.from_file(str(files.tokenizer))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoder = load_encoder(files)
    rows = []
    with torch.inference_mode():
        for sentence in sentences:
            ids = torch.tensor([tokenizer.encode(sentence).ids])
            states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            rows.append(torch.nn.functional.normalize(states.mean(dim=1), dim=1))
    found: NDArray[np.float32] = torch.cat(rows).numpy()
    return found
