"""Writes the trained moderator as one ONNX graph.

Knows nothing about data sets. Two inputs, one output, both axes free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from app.training.moderator.network import Calibrated

_OPSET: Final = 17


def export_graph(calibrated: Calibrated, target: Path) -> None:
    """Write the fp32 graph: `input_ids`, `attention_mask` to `scores`."""
    calibrated.eval()
    ids = torch.tensor([[5, 9, 8, 6], [5, 9, 6, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    free = {0: "batch", 1: "length"}
    torch.onnx.export(
        calibrated,
        (ids, mask),
        str(target),
        input_names=["input_ids", "attention_mask"],
        output_names=["scores"],
        dynamic_axes={"input_ids": free, "attention_mask": free, "scores": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,  # tracing is enough: no control flow, and both axes stay free
    )
