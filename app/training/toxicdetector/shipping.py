"""Writes the trained network as the file that the service reads.

Knows nothing about data sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.training.toxicdetector.fitting import Calibration
from app.training.toxicdetector.network import Network


def export(network: Network, calibration: Calibration, target: Path) -> None:
    """Write `target` for `StatesMlp`: float16, but for what standardises and what calibrates."""
    if network.category is None:
        raise ValueError("a detector without categories cannot serve")
    state = network.state_dict()
    whole = ("mean", "scale", "toxic.weight", "toxic.bias", "category.weight", "category.bias")
    arrays = {name: state[name] for name in whole}
    for index in range(len(network.linears)):
        arrays[f"weight.{index}"] = state[f"linears.{index}.weight"]
        arrays[f"bias.{index}"] = state[f"linears.{index}.bias"]
        arrays[f"gain.{index}"] = state[f"norms.{index}.weight"]
        arrays[f"shift.{index}"] = state[f"norms.{index}.bias"]
    exact = {"mean", "scale"}
    stored = {
        name: value.numpy().astype(np.float32 if name in exact else np.float16)
        for name, value in arrays.items()
    }
    numbers = (calibration.slope, calibration.offset, calibration.temperature)
    stored["calibration"] = np.asarray(numbers, np.float32)
    np.savez(target, allow_pickle=False, **stored)
