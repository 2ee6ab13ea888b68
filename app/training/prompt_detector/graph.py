"""Writes the trained detector as one ONNX graph: encoder, folded MLP and calibration.

Knows nothing about data sets.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from typing_extensions import override

from app.training.export import write_graph
from app.training.prompt_detector.embeddings import layer_means
from app.training.prompt_detector.network import Calibrated


class ExportedDetector(nn.Module):
    """Encoder, folded MLP and calibration in one module: token ids in, probabilities out."""

    def __init__(self, encoder: nn.Module, calibrated: Calibrated) -> None:
        super().__init__()
        self.encoder = encoder
        self.calibrated = calibrated

    @override
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length) twice to (batch, outputs)."""
        means = layer_means(self.encoder, input_ids, attention_mask)
        scores: torch.Tensor = self.calibrated(means.flatten(1))
        return scores


def export_graph(encoder: nn.Module, calibrated: Calibrated, target: Path) -> None:
    """Write the fp32 graph."""
    write_graph(ExportedDetector(encoder, calibrated), target)
