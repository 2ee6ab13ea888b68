"""What every exported model goes through: int8 weights, and the card that describes its folder.

Knows nothing about data sets or networks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from app.inference.artefact import CARD, file_sha256

_HEAD: Final = "calibrated"
"""In the names of the nodes that make scores from what the encoder found."""

_OPSET: Final = 17


def write_graph(module: nn.Module, target: Path) -> None:
    """Write the fp32 graph of a module: `input_ids` and `attention_mask` to `scores`.

    Both inputs are free in batch and length.
    """
    ids = torch.tensor([[5, 9, 8, 6], [5, 9, 6, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    free = {0: "batch", 1: "length"}
    torch.onnx.export(
        module.eval(),
        (ids, mask),
        str(target),
        input_names=["input_ids", "attention_mask"],
        output_names=["scores"],
        dynamic_axes={"input_ids": free, "attention_mask": free, "scores": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,  # tracing is enough: no control flow, and both axes stay free
    )


def quantise(source: Path, target: Path) -> None:
    """Write an int8 copy, in which every row of activations has a scale of its own.

    A scale for a whole tensor would be shared by all rows of a batch, and the score of a text would
    depend on the texts beside it. The head stays in fp32: it is small, and it decides.
    """
    import onnx  # noqa: PLC0415 - only training has it
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    from app.training.int8 import rewrite  # noqa: PLC0415 - needs onnx

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
    rewrite(model, keep=_HEAD)
    onnx.save(model, str(target))


def write_card(folder: Path, card: dict[str, Any], files: Sequence[str]) -> None:
    """Write `card.json` with the sha256 of every file."""
    complete = {**card, "files": {name: file_sha256(folder / name) for name in files}}
    text = json.dumps(complete, indent=2, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
