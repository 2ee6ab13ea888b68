"""Rewrites an fp32 graph so that its matrix products run in int8, every row with its own scale.

Knows nothing about files or about what the graph computes. Opset 17. For x (rows, inputs) and
weights W (inputs, outputs),

    x W = (x / m) (m W) ~ s * ((u - z) Q) * t

with m one factor for each input, s one scale for each row of x, u = round(x / m / s) + z in uint8,
and Q = round(m W / t) in int8, t one scale for each output. A row's integers depend on that row
alone, and integer sums are exact: the rows of a batch cannot influence each other.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_CONTRIB: Final = "com.microsoft"
_TOP: Final = 127
_MIDDLE: Final = 128
_ONE_SIDED: Final = 16
"""The zero point of inputs that are hardly negative, as after GELU: finer steps above zero."""
_SIDES: Final = 8
"""Inputs that reach this many times farther up than down count as hardly negative."""
_SMOOTHING: Final = 0.75
"""How much of an input's range moves into the weights (SmoothQuant's alpha), after a norm."""
_TINY: Final = np.float32(1e-10)
_PROBE: Final = (16, 64)
"""Batch and length of the random token ids that show the range of every input."""
_SEED: Final = 7

Array = NDArray[np.float32]


def rewrite(model: Any, *, keep: str) -> None:
    """Turn products with constant weights, and the vocabulary, to int8, in place.

    Nodes with `keep` in their names stay as they are.
    """
    Rewriting(model, keep).run()


class Rewriting:
    """One pass over the nodes: each is copied, or replaced by its int8 counterpart."""

    def __init__(self, model: Any, keep: str) -> None:
        self._model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._products = [
            node
            for node in model.graph.node
            if node.op_type == "MatMul" and keep not in node.name and self._rank(node.input[1]) == 2  # noqa: PLR2004 - a matrix
        ]
        self._words = [
            node
            for node in model.graph.node
            if node.op_type == "Gather"
            and node.input[1] == "input_ids"
            and self._rank(node.input[0]) == 2  # noqa: PLR2004 - a matrix
        ]
        self._nodes: list[Any] = []
        self._rounded: dict[str, tuple[str, str, str]] = {}

    def run(self) -> None:
        """Rewrite the graph."""
        graph = self._model.graph
        ranges = self._ranges()
        factors, weights = self._factors(ranges), {id(node) for node in self._products}
        words = {id(node) for node in self._words}
        for node in list(graph.node):
            if id(node) in weights:
                self._product(node, factors[node.input[0]], ranges[node.input[0]])
            elif id(node) in words:
                self._vocabulary(node)
            else:
                self._nodes.append(node)
        self._replace(graph)
        if all(entry.domain != _CONTRIB for entry in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))

    def _replace(self, graph: Any) -> None:
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for name, tensor in self._constants.items() if name in used]
        del graph.node[:]
        graph.node.extend(self._nodes)
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _rank(self, name: str) -> int:
        return len(self._constants[name].dims) if name in self._constants else 0

    def _weights(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self._constants[name]), np.float32)

    def _ranges(self) -> dict[str, tuple[Array, Array]]:
        """Lowest and highest value of every input of a product, on random tokens."""
        names = list(dict.fromkeys(node.input[0] for node in self._products))
        probe = onnx.ModelProto()
        probe.CopyFrom(self._model)
        known = {output.name for output in probe.graph.output}
        probe.graph.output.extend(
            helper.make_empty_tensor_value_info(name) for name in names if name not in known
        )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        vocabulary = min(self._constants[node.input[0]].dims[0] for node in self._words)
        ids = np.random.default_rng(_SEED).integers(0, vocabulary, _PROBE)
        values = session.run(names, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        rows = [value.reshape(-1, value.shape[-1]) for value in values]
        return {name: (row.min(0), row.max(0)) for name, row in zip(names, rows, strict=True)}

    def _factors(self, ranges: dict[str, tuple[Array, Array]]) -> dict[str, Array]:
        """What each input is divided by, and its weights multiplied with.

        A few outputs of a norm are many times larger than the others, and would take the whole
        scale of their row. Other inputs have no such columns, and weights would only lose.
        """
        normed = {name for node in self._model.graph.node for name in _norm_outputs(node, self)}
        factors = {}
        for name, (low, high) in ranges.items():
            factors[name] = np.ones_like(low)
            if name in normed:
                readers = [node for node in self._products if node.input[0] == name]
                largest = np.max([abs(self._weights(n.input[1])).max(1) for n in readers], axis=0)
                reach = np.maximum(np.maximum(-low, high), 1e-3)
                wanted = reach**_SMOOTHING / np.maximum(largest, 1e-4) ** (1 - _SMOOTHING)
                mean = np.exp(np.log(wanted).mean())
                factors[name] = np.asarray(wanted / mean, np.float32)
        return factors

    def is_vector(self, name: str) -> bool:
        """Whether the name is a constant with one axis."""
        return self._rank(name) == 1

    def _product(self, node: Any, factor: Array, reach: tuple[Array, Array]) -> None:
        name, weights, out = node.input[0], node.input[1], node.output[0]
        if name not in self._rounded:
            self._rounded[name] = self._round(name, factor, reach)
        integers, scale, zero = self._rounded[name]
        matrix, column = _in_int8(self._weights(weights) * factor[:, None], axis=0)
        product = self._add(
            "MatMulIntegerToFloat",
            [
                integers,
                self._constant(f"{out}_int8", matrix),
                self._constant("int8_one", np.float32(1)),
                self._constant(f"{out}_columns", column.ravel()),
                zero,
            ],
            f"{out}_unscaled",
            domain=_CONTRIB,
        )
        self._add("Mul", [product, scale], out)

    def _round(self, name: str, factor: Array, reach: tuple[Array, Array]) -> tuple[str, str, str]:
        """Integers, scale of each row, and zero point."""
        if (factor != 1).any():
            inverse = self._constant(f"{name}_factor", 1 / factor)
            name = self._add("Mul", [name, inverse], f"{name}_smooth")
        low, high = reach
        zero = _ONE_SIDED if -low.min() * _SIDES < high.max() else _MIDDLE
        up = self._constant(f"int8_up_{zero}", np.float32(1 / (255 - zero)))
        down = self._constant(f"int8_down_{zero}", np.float32(-1 / zero))
        highest = self._add("ReduceMax", [name], f"{name}_highest", axes=[-1], keepdims=1)
        lowest = self._add("ReduceMin", [name], f"{name}_lowest", axes=[-1], keepdims=1)
        above = self._add("Mul", [highest, up], f"{name}_above")
        below = self._add("Mul", [lowest, down], f"{name}_below")
        floor = self._constant("int8_floor", _TINY)
        scale = self._add("Max", [above, below, floor], f"{name}_scale")
        scaled = self._add("Div", [name, scale], f"{name}_scaled")
        point = self._constant(f"int8_zero_{zero}", np.uint8(zero))
        one = self._constant("int8_one", np.float32(1))
        integers = self._add("QuantizeLinear", [scaled, one, point], f"{name}_uint8")
        return integers, scale, point

    def _vocabulary(self, node: Any) -> None:
        words, ids, out = node.input[0], node.input[1], node.output[0]
        matrix, row = _in_int8(self._weights(words), axis=1)
        integers = self._constant(f"{words}_int8", matrix)
        scales = self._constant(f"{words}_scales", row)
        found = self._add("Gather", [integers, ids], f"{out}_int8")
        scale = self._add("Gather", [scales, ids], f"{out}_scale")
        values = self._add("Cast", [found], f"{out}_unscaled", to=onnx.TensorProto.FLOAT)
        self._add("Mul", [values, scale], out)

    def _constant(self, name: str, value: Any) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _norm_outputs(node: Any, graph: Rewriting) -> list[str]:
    """The output of a layer norm, or of the last step of an RMS norm: times a vector of weights."""
    weighted = node.op_type == "Mul" and any(graph.is_vector(name) for name in node.input)
    return [node.output[0]] if node.op_type == "LayerNormalization" or weighted else []


def _in_int8(values: Array, axis: int) -> tuple[NDArray[np.int8], Array]:
    scale = np.maximum(abs(values).max(axis, keepdims=True) / np.float32(_TOP), _TINY)
    return np.rint(values / scale).astype(np.int8), scale
