"""Fits the network on embeddings and calibrates it.

Knows nothing about data sets on disk, nor about the shipped files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.training import metrics
from app.training.toxicdetector.network import Network, Shape

Labels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Prompts as embeddings: `owner[i]` is the text that row i belongs to."""

    embeddings: NDArray[np.float16]  # (rows, layers, hidden)
    owner: NDArray[np.int64]
    toxic: NDArray[np.float32]  # (texts,)
    kinds: NDArray[np.float32]  # (texts, categories), rows sum to one or zero


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the network is trained.

    The paper gives 100 epochs with batches of 20 and a rate of 0.01; its code has Adam, a loss that
    weights the classes by their inverse frequency, and up to 600 epochs.
    """

    rate: float = 1e-5
    epochs: int = 8
    batch: int = 128
    decay: float = 2e-4


CATEGORY_WEIGHT: Final = 0.5


def fit(rows: Rows, *, shape: Shape, recipe: Recipe, concepts: int, seed: int) -> Network:
    """Train the network; the same seed gives the same network on the same machine."""
    torch.manual_seed(seed)
    data = torch.from_numpy(rows.embeddings).flatten(1)
    mean, scale = _moments(data)
    network = Network(mean, scale, shape)
    data = torch.cat([network.standardised(part.float()) for part in torch.split(data, 1024)])
    owner = torch.from_numpy(rows.owner)
    toxic = torch.from_numpy(rows.toxic)[owner]
    kinds = torch.from_numpy(rows.kinds)[owner]
    share = float(toxic.mean())
    weights = torch.where(toxic == 1, 0.5 / share, 0.5 / (1 - share))  # classes count alike
    weights = weights / torch.bincount(owner)[owner]
    optimiser = torch.optim.AdamW(network.groups(recipe.rate, concepts), weight_decay=recipe.decay)
    steps = recipe.epochs * -(-len(data) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    network.train()
    for _ in range(recipe.epochs):
        for batch in torch.split(torch.randperm(len(data)), recipe.batch):
            logits, category = network.judge(data[batch])
            loss = _loss(logits, category, toxic[batch], kinds[batch], weights[batch])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return network.eval()


def _loss(
    logits: torch.Tensor,
    category: torch.Tensor,
    toxic: torch.Tensor,
    kinds: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of toxic, plus that of the category where it is known."""
    binary = nn.functional.binary_cross_entropy_with_logits(logits, toxic, weights)
    if not category.shape[1]:
        return binary
    surprise = -(kinds * category.log_softmax(dim=1)).sum(dim=1)
    return binary + CATEGORY_WEIGHT * surprise.sum() / kinds.sum().clamp(min=1.0)


def _moments(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each column, without a copy of all rows in float32."""
    count, first = len(data), data[0].float()  # taken off, so that the squares stay small
    total = squares = torch.zeros(len(first), dtype=torch.float64)
    for part in torch.split(data, 1024):
        shifted = part.float() - first
        total = total + shifted.sum(dim=0, dtype=torch.float64)
        squares = squares + shifted.square().sum(dim=0, dtype=torch.float64)
    mean = total / count
    variance = squares / count - mean.square()
    return (mean + first).float(), variance.clamp(min=0).sqrt().float()


def logits_of(network: Network, rows: Rows) -> tuple[Labels, NDArray[np.float32]]:
    """The toxic logit of each text (its worst window's), and that window's category logits."""
    with torch.inference_mode():
        data = torch.from_numpy(rows.embeddings).flatten(1)
        parts = [network(part.float()) for part in torch.split(data, 1024)]
    logits = np.concatenate([part[0].numpy() for part in parts])
    kinds = np.concatenate([part[1].numpy() for part in parts])
    best = np.full(len(rows.toxic), -1, np.int64)
    for index in np.argsort(logits, kind="stable"):  # the highest of each text is written last
        best[rows.owner[index]] = index
    return logits[best].astype(np.float64), kinds[best]


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = sigmoid(slope * logit + offset); category logits are divided by temperature."""

    slope: float
    offset: float
    temperature: float

    def probability(self, logits: Labels) -> Labels:
        """The calibrated probability of each logit."""
        found: Labels = 1 / (1 + np.exp(-(self.slope * logits + self.offset)))
        return found


def calibrate(network: Network, parts: Sequence[Rows]) -> Calibration:
    """Fit on rows that the network has not seen."""
    logits = [logits_of(network, part) for part in parts]
    toxic = np.concatenate([part.toxic for part in parts]).astype(np.float64)
    slope, offset = metrics.platt(toxic, np.concatenate([each[0] for each in logits]))
    category = torch.from_numpy(np.concatenate([each[1] for each in logits]))
    kinds = torch.from_numpy(np.concatenate([part.kinds for part in parts]))
    named = kinds.sum(dim=1) > 0
    surprise = {
        temperature: -(kinds[named] * (category[named] / temperature).log_softmax(1)).sum().item()
        for temperature in np.linspace(0.5, 3.0, 26).round(2).tolist()
    }
    return Calibration(slope, offset, min(surprise, key=surprise.__getitem__))
