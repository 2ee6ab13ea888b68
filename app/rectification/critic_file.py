"""A critic on disk: a card and one file in which every matrix is int8 with one scale per row.

Knows nothing about what the weights are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from app.domain.errors import ConfigurationError, ModelCorrupt, ModelMissing

CARD: Final = "card.json"
WEIGHTS: Final = "critic.safetensors"

_TOP: Final = 127
_SCALE: Final = ".scale"
_MATRIX_AXES: Final = 2


def write_critic(folder: Path, shape: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write weights, shape and sha256; what else the folder's card says stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save(_rounded(weights))
    path = folder / CARD
    card = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    card["shape"] = dict(shape)
    card["files"] = {**card.get("files", {}), WEIGHTS: hashlib.sha256(content).hexdigest()}
    (folder / WEIGHTS).write_bytes(content)
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_critic(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return shape and weights, in float32.

    Raises:
        ModelMissing: The card or the weights are not there.
        ModelCorrupt: The weights are not those that the card describes.
        ConfigurationError: The card cannot be read.
    """
    try:
        card = json.loads((folder / CARD).read_bytes())
        content = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as exc:
        raise ModelMissing(f"no critic in {folder}: run `sluiceway train critic`") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{folder / CARD} is not a model card: {exc!r}") from exc
    try:
        shape = dict(card["shape"])
        expected = card["files"][WEIGHTS] if "files" in card else None
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigurationError(f"{folder / CARD} describes no critic: {exc!r}") from exc
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise ModelCorrupt(f"{folder / WEIGHTS} is not the file that its card describes")
    try:
        return shape, _restored(load(content))
    except (SafetensorError, KeyError) as exc:
        raise ModelCorrupt(f"{folder / WEIGHTS} holds no critic: {exc!r}") from exc


def _rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for name, weight in weights.items():
        values = weight.detach().to("cpu", torch.float32).contiguous()
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} has weights that are not finite")
        if values.ndim == _MATRIX_AXES:
            # A row of zeros has any scale but zero.
            scale = (values.abs().amax(1) / _TOP).clamp_min(torch.finfo(torch.float32).tiny)
            tensors[name + _SCALE] = scale
            values = (values / scale[:, None]).round_().to(torch.int8)
        tensors[name] = values
    return tensors


def _restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor if tensor.dtype != torch.int8 else tensor * tensors[name + _SCALE][:, None]
        for name, tensor in tensors.items()
        if not name.endswith(_SCALE)
    }
