"""ToxicDetector's network: embedding times concepts, standardised, then a small MLP.

Knows nothing about data or files. The features of a text are e^l * c_k^l for every layer l and
concept k (elementwise), each standardised over the training rows, and a linear layer reads them.
Standardising undoes the product but for its sign:

    (e c - mean(e c)) / std(e c) = sign(c) (e - mean(e)) / std(e)

So the K blocks of features are K copies of the standardised embedding with signs, and the first
layer's K blocks of weights fold into one matrix, sum_k sign(c_k) W_k. That holds while training,
too: the blocks start as independent draws, whose sum is a draw of Kaiming's size for one block, and
Adam moves each by the same step but for the sign, so their sum moves K times as fast. `Network` is
therefore the paper's network on products, exactly, at a K-th of the size; `product_features` and
`fold` are the long way round, kept for the tests that hold the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from typing_extensions import override

_LEAST_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class Shape:
    """The MLP: widths of its hidden layers as in the paper's code, and what was added to it.

    `categories` is the number of category logits beside the one for toxic; `dropout` is on the
    standardised embedding.
    """

    widths: tuple[int, ...] = (200, 100, 50, 20)
    categories: int = 0
    dropout: float = 0.0


class Network(nn.Module):
    """Embeddings to a logit for toxic, and logits for categories from the second hidden layer.

    Args:
        mean: of the embeddings of the training rows, flat.
        scale: their standard deviation, flat.
        shape: the sizes of the MLP.
    """

    def __init__(self, mean: torch.Tensor, scale: torch.Tensor, shape: Shape) -> None:
        super().__init__()
        self.mean = nn.Buffer(mean)
        self.scale = nn.Buffer(scale.clamp(min=_LEAST_SCALE))
        sizes = (len(mean), *shape.widths)
        linears = [nn.Linear(before, after) for before, after in pairwise(sizes)]
        self.linears = nn.ModuleList(linears)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in shape.widths)
        self.dropout = nn.Dropout(shape.dropout)
        self.toxic = nn.Linear(shape.widths[-1], 1)
        self.category = nn.Linear(shape.widths[1], shape.categories) if shape.categories else None
        for linear in linears:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)

    @override
    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, layers * hidden) to (batch,) and (batch, categories)."""
        return self.judge(self.standardised(embeddings))

    def standardised(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What stands for the products: see above."""
        return (embeddings - self.mean) / self.scale

    def judge(self, standardised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The MLP alone."""
        hidden = self.dropout(standardised)
        category = hidden.new_zeros(len(hidden), 0)
        for index, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            hidden = torch.relu(norm(linear(hidden)))
            if index == 1 and self.category is not None:
                category = self.category(hidden)
        return self.toxic(hidden).squeeze(1), category

    def groups(self, rate: float, concepts: int) -> list[dict[str, object]]:
        """Parameters for Adam: what stands for the blocks of `concepts` moves that much faster."""
        first = self.linears[0].weight
        rest = [each for each in self.parameters() if each is not first]
        return [{"params": [first], "lr": rate * concepts}, {"params": rest, "lr": rate}]


def product_features(embeddings: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
    """Flat products of (rows, size) embeddings with (concepts, size) ones."""
    return (embeddings[:, None, :] * concepts[None]).flatten(1)


def fold(weight: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
    """The first layer on the standardised embedding that equals `weight` on its products.

    Args:
        weight: (hidden, concepts * size), on standardised products.
        concepts: (concepts, size).
    """
    blocks = weight.view(len(weight), *concepts.shape)
    return (blocks * concepts.sign()).sum(dim=1)


def inner_features(
    embeddings: torch.Tensor, concepts: torch.Tensor, scenarios: Sequence[int]
) -> torch.Tensor:
    """The paper's first version: per layer the highest inner product with a scenario's concepts.

    Args:
        embeddings: (rows, layers, hidden).
        concepts: (concepts, layers, hidden).
        scenarios: how many concepts each scenario has, in order.

    Returns:
        (rows, scenarios * layers)
    """
    products = torch.einsum("nlh,klh->nkl", embeddings, concepts)
    parts = torch.split(products, list(scenarios), dim=1)
    return torch.cat([part.amax(dim=1) for part in parts], dim=1)
