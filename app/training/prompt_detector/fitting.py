"""Fits the classifier on embeddings, and calibrates it.

Knows nothing about data sets on disk or about the shipped files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from app.domain.chunker import windows
from app.inference.tokenizer import TextTokenizer
from app.training import metrics
from app.training.corpus.datasets import Sample
from app.training.outputs import CATEGORIES, STAGES
from app.training.prompt_detector.embeddings import EmbeddingCache, embed
from app.training.prompt_detector.network import (
    Calibrated,
    ConceptFeatures,
    ConceptNetwork,
    Heads,
    Shape,
    masked_loss,
)

WINDOW: Final = 126
"""Tokens of text in a window; with the two special tokens 128. Shorter ones ranked worse on dev."""
OVERLAP: Final = 32

_BATCH: Final = 512
_PEAK_RATE: Final = 1.5e-3


@dataclass(frozen=True, slots=True)
class Features:
    """Windows of samples as embeddings: `owner[i]` is the sample that row i belongs to."""

    embeddings: NDArray[np.float16]  # (windows, layers, width)
    owner: NDArray[np.int64]
    labels: NDArray[np.float32]  # (samples, stages), NaN where unknown
    kinds: NDArray[np.float32]  # (samples, categories), rows sum to one or zero


def features_of(
    samples: Sequence[Sample], tokenizer: TextTokenizer, cache: EmbeddingCache
) -> Features:
    """Embed the first and the last window of every sample."""
    pieces: list[list[int]] = []
    owner: list[int] = []
    for index, sample in enumerate(samples):
        ids = tokenizer.encode(sample.text).ids
        spans = windows(len(ids), WINDOW, OVERLAP)
        for start, end in dict.fromkeys((*spans[:1], *spans[-1:])):
            pieces.append(ids[start:end])
            owner.append(index)
    frame = (tokenizer.start_id, tokenizer.end_id)
    kinds = np.zeros((len(samples), len(CATEGORIES)), np.float32)
    for index, sample in enumerate(samples):
        for category in sample.categories:
            kinds[index, CATEGORIES.index(category)] = 1 / len(sample.categories)
    return Features(
        embeddings=embed(pieces, cache=cache, frame=frame),
        owner=np.asarray(owner),
        labels=np.asarray([(each.on_input, each.on_output) for each in samples], np.float32),
        kinds=kinds,
    )


def concept_embeddings(
    bank: Path, tokenizer: TextTokenizer, cache: EmbeddingCache
) -> NDArray[np.float16]:
    """Embeddings of the bank's sentences, category by category."""
    concepts: dict[str, list[str]] = yaml.safe_load(bank.read_text(encoding="utf-8"))
    sentences = [sentence for group in concepts.values() for sentence in group]
    pieces = [tokenizer.encode(sentence).ids for sentence in sentences]
    return embed(pieces, cache=cache, frame=(tokenizer.start_id, tokenizer.end_id))


def fit(
    features: Features, concepts: NDArray[np.float16], *, shape: Shape, seed: int, epochs: int
) -> ConceptNetwork:
    """Train the network; one epoch sees every window once."""
    torch.manual_seed(seed)
    data = torch.from_numpy(features.embeddings)
    # Standardisation comes from a sample: the statistics settle long before all rows are seen.
    some = data[:: max(1, len(data) // 20_000)].float()
    mean, scale = some.mean(dim=0), some.std(dim=0).clamp(min=1e-4)
    network = ConceptNetwork(
        ConceptFeatures(mean, scale, torch.from_numpy(concepts).float(), shape), Heads(shape)
    )
    owner = torch.from_numpy(features.owner)
    labels = torch.from_numpy(features.labels)[owner]
    kinds = torch.from_numpy(features.kinds)[owner]
    weights = 1.0 / torch.bincount(owner)[owner]

    optimiser = torch.optim.AdamW(network.parameters(), lr=_PEAK_RATE, weight_decay=0.02)
    steps = epochs * -(-len(data) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_RATE, total_steps=steps)
    network.train()
    for epoch in range(epochs):
        total = 0.0
        batches = torch.split(torch.randperm(len(data)), _BATCH)
        for rows in batches:
            unsafe, category = network(data[rows].float())
            loss = masked_loss(unsafe, category, labels[rows], kinds[rows], weights[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(batches):.4f}", flush=True)
    return network.eval()


def logits_of(
    network: ConceptNetwork, features: Features
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Stage logits of each sample (its worst window) and category logits of that sample."""
    count = len(features.labels)
    stage = np.full((count, len(STAGES)), -np.inf, np.float32)
    kind = np.full((count, len(CATEGORIES)), -np.inf, np.float32)
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(features.owner)), 2048):
            parts = network(torch.from_numpy(features.embeddings[rows.numpy()]).float())
            for target, part in zip((stage, kind), parts, strict=True):
                np.maximum.at(target, features.owner[rows.numpy()], part.numpy())
    return stage, kind


def calibrate(network: ConceptNetwork, parts: Sequence[Features]) -> Calibrated:
    """Fit slope and offset of each stage, and the temperature of the categories."""
    logits = [logits_of(network, part) for part in parts]
    stage = np.concatenate([each[0] for each in logits]).astype(np.float64)
    kind = torch.from_numpy(np.concatenate([each[1] for each in logits]))
    labels = np.concatenate([part.labels for part in parts]).astype(np.float64)
    named = torch.from_numpy(np.concatenate([part.kinds for part in parts]))
    fits = []
    for column in range(len(STAGES)):
        known = ~np.isnan(labels[:, column])
        fits.append(metrics.platt(labels[known, column], stage[known, column]))
    rows = named.sum(dim=1) > 0
    surprise = {
        temperature: -(named[rows] * (kind[rows] / temperature).log_softmax(dim=1)).sum().item()
        for temperature in np.linspace(0.5, 3.0, 26).round(2).tolist()
    }
    folded = ConceptNetwork(_features(network).fold(), network.heads)
    slope, offset = torch.tensor(fits).T
    best = min(surprise, key=surprise.__getitem__)
    print(f"calibration: slope {slope.tolist()}, offset {offset.tolist()}, temperature {best}")
    return Calibrated(folded, slope, offset, best).eval()


def _features(network: ConceptNetwork) -> ConceptFeatures:
    if not isinstance(network.features, ConceptFeatures):
        raise TypeError("the network is folded already")
    return network.features
