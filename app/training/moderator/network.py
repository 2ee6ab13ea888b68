"""The moderator's network: pooled hidden states, an MLP, one logit per stage and per category.

Knows nothing about encoders or data. Beside the mean, the maximum over the tokens is pooled: one
harmful sentence among many harmless ones moves the mean little and the maximum much.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from typing_extensions import override

from app.training.outputs import CATEGORIES, STAGES

HIDDEN: Final = 256
DROPOUT: Final = 0.1


class Head(nn.Module):
    """Pooling and the MLP with several outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(2 * width),
            nn.Dropout(DROPOUT),
            nn.Linear(2 * width, HIDDEN),
            nn.GELU(),
            nn.Dropout(DROPOUT),
        )
        self.unsafe = nn.Linear(HIDDEN, len(STAGES))
        self.category = nn.Linear(HIDDEN, len(CATEGORIES))
        self.outputs = len(STAGES) + len(CATEGORIES)

    @override
    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) and (batch, length) to (batch, stages + categories) logits."""
        weight = mask.unsqueeze(-1).to(states.dtype)  # (batch, length, 1)
        mean = (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        highest = (states - (1.0 - weight) * 1e4).amax(dim=1)
        hidden = self.body(torch.cat((mean, highest), dim=1))
        logits: torch.Tensor = torch.cat((self.unsafe(hidden), self.category(hidden)), dim=1)
        return logits


class Network(nn.Module):
    """A trunk and a head: token ids in, logits out."""

    def __init__(self, trunk: nn.Module, head: Head) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    @override
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, length) twice to (batch, stages + categories) logits."""
        states = self.trunk(ids, mask)
        logits: torch.Tensor = self.head(states.float(), mask)
        return logits


def masked_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over what is known: stages, plus categories at half the weight.

    Args:
        logits: (batch, stages + categories).
        targets: the same shape; NaN where the source does not say.
    """
    known = ~targets.isnan()
    each = nn.functional.binary_cross_entropy_with_logits(
        logits, targets.nan_to_num(), reduction="none"
    )
    stages = len(STAGES)
    losses = []
    for part in (slice(None, stages), slice(stages, None)):
        there = known[:, part]
        losses.append((each[:, part] * there).sum() / there.sum().clamp(min=1))
    both: torch.Tensor = losses[0] + 0.5 * len(CATEGORIES) ** 0.5 * losses[1]
    return both


class Calibrated(nn.Module):
    """What ships: the probability of unsafe at each stage, shared out over the categories.

    score(stage, c) = sigmoid(a s + b) * p_c / max p,  p = sigmoid(category)

    The likeliest category carries the whole probability, so every text has one overall score.
    """

    def __init__(self, network: nn.Module, slope: torch.Tensor, offset: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.slope = nn.Buffer(slope)  # (stages,)
        self.offset = nn.Buffer(offset)  # (stages,)

    @override
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length) twice to (batch, stages * categories) probabilities."""
        logits = self.network(input_ids, attention_mask)
        stages = len(STAGES)
        unsafe = torch.sigmoid(logits[:, :stages] * self.slope + self.offset)  # (batch, stages)
        kinds = torch.sigmoid(logits[:, stages:])  # (batch, categories)
        share = kinds / kinds.amax(dim=1, keepdim=True).clamp(min=1e-9)
        scores = unsafe.unsqueeze(2) * share.unsqueeze(1)  # (batch, stages, categories)
        return scores.flatten(1)
