"""What every exported model goes through: int8 weights, and the card that describes its folder.

Knows nothing about data sets or networks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from app.inference.artefact import CARD, file_sha256

_BLOCK: Final = 64
"""Weights that share a scale. At 128 and more, rows of a batch did influence each other."""
_INT8_ACTIVATIONS: Final = 4
"""ONNX Runtime's name for the kernels that round activations to int8 as well."""


def quantise(source: Path, target: Path) -> None:
    """Write an int8 copy: weights and activations in blocks, each block with a scale of its own.

    A scale for a whole tensor would be shared by all rows of a batch, and the score of a text would
    depend on the texts beside it. The MLP stays in fp32: it is small, and it decides.
    """
    import onnx  # noqa: PLC0415 - only training has it
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - the same
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415 - the same
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        prepared, words = Path(scratch) / "prepared.onnx", Path(scratch) / "words.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(
            str(prepared),
            str(words),
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Gather"],
            nodes_to_quantize=[
                node.name
                for node in onnx.load(str(prepared)).graph.node
                if any("word_embeddings" in name for name in node.input)
            ],
        )
        model = onnx.load(str(words))
        weights = {tensor.name for tensor in model.graph.initializer}
        quantiser = MatMulNBitsQuantizer(
            model,
            nodes_to_exclude=[
                node.name
                for node in model.graph.node
                if "calibrated" in node.name or not weights.intersection(node.input)
            ],
            algo_config=DefaultWeightOnlyQuantConfig(
                block_size=_BLOCK, is_symmetric=True, accuracy_level=_INT8_ACTIVATIONS, bits=8
            ),
        )
        quantiser.process()
        quantiser.model.save_model_to_file(str(target), use_external_data_format=False)


def write_card(folder: Path, card: dict[str, Any], files: Sequence[str]) -> None:
    """Write `card.json` with the sha256 of every file."""
    complete = {**card, "files": {name: file_sha256(folder / name) for name in files}}
    text = json.dumps(complete, indent=2, ensure_ascii=False)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")
