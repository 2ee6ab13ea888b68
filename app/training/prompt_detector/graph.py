"""Writes the trained detector as one ONNX graph: encoder, folded MLP and calibration.

Knows nothing about data sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import nn
from typing_extensions import override

from app.training.prompt_detector.embeddings import layer_means
from app.training.prompt_detector.network import Calibrated

_OPSET: Final = 17


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
    """Write the fp32 graph, its two inputs free in batch and length."""
    module = ExportedDetector(encoder, calibrated).eval()
    ids = torch.tensor([[101, 2009, 2003, 102], [101, 2009, 102, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    free = {0: "batch", 1: "length"}
    torch.onnx.export(
        module,
        (ids, mask),
        str(target),
        input_names=["input_ids", "attention_mask"],
        output_names=["scores"],
        dynamic_axes={"input_ids": free, "attention_mask": free, "scores": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,  # tracing is enough: no control flow, and both axes stay free
    )
