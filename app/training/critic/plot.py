"""Draws how well -Q agrees with what happened. Knows nothing about critics."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from app.training.critic.calibration import Trace

_BINS: Final = 15
"""Of equally many tokens each: nearly all have a low risk."""


def plot_reliability(target: Path, returns: Trace, **risks: Trace) -> None:
    """Write a PNG: mean predicted risk against mean return, one line for each prediction."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second to import

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name, predicted in risks.items():
        left.plot(*binned(predicted, returns), "o-", markersize=4, label=name.replace("_", " "))
        right.hist(predicted, bins=40, range=(0, 1), histtype="step", label=name.replace("_", " "))
    left.set(xlabel="predicted risk -Q", ylabel="mean return of the rollouts")
    right.set(xlabel="predicted risk -Q", ylabel="tokens", yscale="log")
    left.legend(fontsize="small")
    figure.savefig(target, dpi=110)


def binned(predicted: Trace, returns: Trace) -> tuple[list[float], list[float]]:
    """Mean prediction and mean return in bins of equally many tokens."""
    parts = [part for part in np.array_split(np.argsort(predicted), _BINS) if len(part)]
    return (
        [float(predicted[part].mean()) for part in parts],
        [float(returns[part].mean()) for part in parts],
    )
