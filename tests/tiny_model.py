"""A model folder for tests, made in a moment: every word of a few has a weight, a text their sum.

The scores of the output stage count the words of the context as well, as the model sees one row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from app.domain.categories import Category

CATEGORIES = (Category.HATE, Category.THREAT)
POINTS = {"strict": 0.2, "balanced": 0.5, "loose": 0.9}
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
XLM_R = ("<pad>", "<unk>", "<s>", "</s>")

# What a word adds to the log-odds of hate and threat at the input, then at the output.
WEIGHTS: Mapping[str, tuple[float, float, float, float]] = {
    "pipe": (0.0, 4.0, 0.0, 4.0),
    "bomb": (0.0, 4.0, 0.0, 4.0),
    "kill": (0.0, 6.0, 0.0, 7.0),
    "worthless": (6.0, 0.0, 6.0, 0.0),
    "harmless": (-9.0, -9.0, -9.0, -9.0),
    "hello": (0.0, 0.0, 0.0, 0.0),
}
_BIAS = -5.0


def write_tokenizer(path: Path, special: tuple[str, str, str, str] = BERT) -> list[str]:
    """Whole words in lower case; the vocabulary, in order of the ids."""
    words = [*special, *WEIGHTS]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(path))
    return words


def write_model(folder: Path, name: str = "moderator", **card: Any) -> Path:
    """A folder with card, tokenizer and graph; `card` changes what the card says."""
    folder.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder / "tokenizer.json")
    _write_graph(folder / "model.onnx", words)
    content = {
        "name": name,
        "revision": "tiny",
        "licence": "Apache-2.0",
        "stages": ["input", "output"],
        "categories": list(CATEGORIES),
        "window": 8,
        "overlap": 2,
        "context_tokens": 4,
        "thresholds": {"input": POINTS, "output": POINTS},
        "files": {
            file: sha256((folder / file).read_bytes()).hexdigest()
            for file in ("model.onnx", "tokenizer.json")
        },
        "sources": [],
        "metrics": {},
        **card,
    }
    (folder / "card.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _write_graph(path: Path, words: list[str]) -> None:
    none = (0.0,) * 4
    weights = np.array([WEIGHTS.get(word, none) for word in words], np.float32)
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["each", "wide"], ["known"]),
        helper.make_node("ReduceSum", ["known", "middle"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])]
    constants = {
        "weights": weights,
        "bias": np.array([_BIAS], np.float32),
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
    }
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(path))
