"""Int8 export on small random encoders, with a norm whose outputs are as uneven as real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from typing_extensions import override

from app.training.export import quantise

# The exporter that traces says in several ways that it is the old one.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_WORDS, _WIDTH = 200, 32


class RmsNorm(nn.Module):
    """As Llama's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Tiny(nn.Module):
    """Attention and a feed-forward layer, then a head under the name that stays in fp32."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.norm, self.last = norm(_WIDTH), norm(_WIDTH)
        with torch.no_grad():
            self.norm.get_parameter("weight")[3] = 20.0
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)
        self.calibrated = nn.Linear(_WIDTH, 4)

    @override
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(input_ids))
        among = self.query(x) @ self.key(x).transpose(1, 2) / _WIDTH
        hidden = (1.0 - attention_mask[:, None, :].float()) * -1e9
        x = self.last(x + torch.softmax(among + hidden, -1) @ self.value(x))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return torch.sigmoid(self.calibrated(x[:, 0]))


@pytest.fixture(params=[nn.LayerNorm, RmsNorm], ids=["layer_norm", "rms_norm"])
def graphs(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """An fp32 graph and its int8 copy."""
    torch.manual_seed(7)
    full, small = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    names, free = ["input_ids", "attention_mask"], {0: "batch", 1: "length"}
    ids = torch.ones(2, 4, dtype=torch.int64)
    torch.onnx.export(
        Tiny(request.param).eval(),
        (ids, ids),
        str(full),
        input_names=names,
        output_names=["scores"],
        dynamic_axes={**dict.fromkeys(names, free), "scores": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    quantise(full, small)
    return full, small


def _session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _scores(session: Any, texts: list[list[int]], length: int = 0) -> np.ndarray[Any, Any]:
    length = max(length, *(len(text) for text in texts))
    ids = np.zeros((len(texts), length), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    (scores,) = session.run(["scores"], {"input_ids": ids, "attention_mask": mask})
    return np.asarray(scores)


def _texts() -> list[list[int]]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, _WORDS, size).tolist() for size in (3, 17, 8, 25, 12, 5, 21, 9)]


def test_int8_scores_are_close_to_fp32(graphs: tuple[Path, Path]) -> None:
    full, small = (_scores(_session(path), _texts()) for path in graphs)
    assert np.abs(full - small).max() < 0.02
    assert full.std(0).min() > 0.02  # the scores differ enough for closeness to mean something


def test_a_score_does_not_depend_on_the_texts_beside_it(graphs: tuple[Path, Path]) -> None:
    session, texts = _session(graphs[1]), _texts()
    together = _scores(session, texts)
    for row, text in enumerate(texts):
        beside = _scores(session, [text, texts[row - 1]])[0]
        padded = _scores(session, [text, [1]], length=40)[0]
        alone = _scores(session, [text])[0]
        # Sums in fp32 differ in their last bits between the kernels for one row and for several.
        assert np.abs(together[row] - [alone, beside, padded]).max() < 1e-5


def test_every_product_but_the_head_is_in_int8(graphs: tuple[Path, Path]) -> None:
    model = onnx.load(str(graphs[1]))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 5
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    shapes = [sorted(tensor.dims) for tensor in floats if len(tensor.dims) > 1]
    assert [shape for shape in shapes if shape[0] > 1] == [[4, _WIDTH]]


def test_query_key_and_value_share_their_rounded_input(graphs: tuple[Path, Path]) -> None:
    model = onnx.load(str(graphs[1]))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 3


def test_the_copy_is_smaller_and_the_same_every_time(
    graphs: tuple[Path, Path], tmp_path: Path
) -> None:
    full, small = graphs
    assert small.stat().st_size < 0.6 * full.stat().st_size
    quantise(full, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == small.read_bytes()
