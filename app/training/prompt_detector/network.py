"""The classifier on top of the frozen encoder: embedding x concepts, then an MLP.

Knows nothing about data or files. Let e^l be the text's embedding at layer l and c_k^l that of
concept sentence k, both standardised per dimension. The features are

    f = [ P^l (e^l * c_k^l)  for every layer l and concept k ]        (* is elementwise)

with one projection P^l of rank r per layer, and the MLP's first layer reads f. Product, projection
and first layer are linear in e^l, so after training they fold into one matrix: the bank shapes what
is learnt and costs nothing when the model runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from typing_extensions import override

from app.training.outputs import CATEGORIES, STAGES


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that were chosen on the dev sets."""

    rank: int = 2
    hidden: int = 384
    narrow: int = 64
    dropout: float = 0.15


class ConceptFeatures(nn.Module):
    """The product features and the first linear layer of the MLP."""

    def __init__(
        self, mean: torch.Tensor, scale: torch.Tensor, concepts: torch.Tensor, shape: Shape
    ) -> None:
        super().__init__()
        layers, width = mean.shape
        self.mean = nn.Buffer(mean)  # (layers, width)
        self.scale = nn.Buffer(scale)  # (layers, width)
        self.concepts = nn.Buffer((concepts - mean) / scale)  # (concepts, layers, width)
        projection = torch.randn(layers, width, shape.rank) / width**0.5
        self.projection = nn.Parameter(projection)
        self.first = nn.Linear(layers * len(concepts) * shape.rank, shape.hidden)

    @override
    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(batch, layers, width) to (batch, hidden)."""
        standard = (embeddings - self.mean) / self.scale
        probes = torch.einsum("kld,ldr->ldkr", self.concepts, self.projection).flatten(2)
        features = torch.einsum("bld,ldf->blf", standard, probes)
        hidden: torch.Tensor = self.first(features.flatten(1))
        return hidden

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """The one linear layer on the flat embedding that computes the same."""
        layers, width = self.mean.shape
        hidden = self.first.out_features
        weight = self.first.weight.view(hidden, layers, len(self.concepts), -1)
        folded = torch.einsum("hlkr,kld,ldr->hld", weight, self.concepts, self.projection)
        folded = folded / self.scale
        linear = nn.Linear(layers * width, hidden)
        linear.weight.copy_(folded.reshape(hidden, -1))
        linear.bias.copy_(self.first.bias - (folded * self.mean).sum(dim=(1, 2)))
        return linear


class Heads(nn.Module):
    """The rest of the MLP: one unsafe logit for each stage, one logit for each category."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(shape.hidden),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
            nn.Linear(shape.hidden, shape.narrow),
            nn.LayerNorm(shape.narrow),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
        )
        self.unsafe = nn.Linear(shape.narrow, len(STAGES))
        self.category = nn.Linear(shape.narrow, len(CATEGORIES))

    @override
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, hidden) to (batch, stages) and (batch, categories)."""
        narrow = self.body(hidden)
        return self.unsafe(narrow), self.category(narrow)


class ConceptNetwork(nn.Module):
    """Features and heads together."""

    def __init__(self, features: ConceptFeatures | nn.Linear, heads: Heads) -> None:
        super().__init__()
        self.features = features
        self.heads = heads

    @override
    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, layers, width), or flat when folded, to stage and category logits."""
        logits: tuple[torch.Tensor, torch.Tensor] = self.heads(self.features(embeddings))
        return logits


def masked_loss(
    unsafe: torch.Tensor,
    category: torch.Tensor,
    labels: torch.Tensor,
    kinds: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Binary cross-entropy per stage plus cross-entropy over categories, unknown labels left out.

    Args:
        unsafe: (batch, stages) logits.
        category: (batch, categories) logits.
        labels: (batch, stages), NaN where unknown.
        kinds: (batch, categories), rows sum to one, or to zero where unknown or safe.
        weights: (batch,) weight of each row.
    """
    known = ~labels.isnan()
    stage = nn.functional.binary_cross_entropy_with_logits(
        unsafe, labels.nan_to_num(), reduction="none"
    )
    stage = (stage * known * weights.unsqueeze(1)).sum() / (known * weights.unsqueeze(1)).sum()
    named = kinds.sum(dim=1) * weights
    surprise = -(kinds * category.log_softmax(dim=1)).sum(dim=1)
    return stage + 0.5 * (surprise * weights).sum() / named.sum().clamp(min=1.0)


class Calibrated(nn.Module):
    """What ships: probability of unsafe for the stage, shared out over the categories.

    score(stage, c) = sigmoid(a s + b) * w_c,  w = softmax(category / T) / max softmax

    The likeliest category carries the whole probability, so a threshold on the categories is a
    threshold on the probability; the others follow in the ratio of their likelihoods.
    """

    def __init__(
        self,
        network: ConceptNetwork,
        slope: torch.Tensor,
        offset: torch.Tensor,
        temperature: float,
    ) -> None:
        super().__init__()
        self.network = network
        self.slope = nn.Buffer(slope)  # (stages,)
        self.offset = nn.Buffer(offset)  # (stages,)
        self.temperature = temperature

    @override
    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Flat embeddings to (batch, stages * categories), stage by stage."""
        unsafe, category = self.network(embeddings)
        probability = torch.sigmoid(unsafe * self.slope + self.offset)
        scaled = category / self.temperature
        relative = torch.exp(scaled - scaled.amax(dim=1, keepdim=True))
        return (probability.unsqueeze(2) * relative.unsqueeze(1)).flatten(1)
