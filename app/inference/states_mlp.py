"""A small MLP on a language model's hidden states, in numpy: what it weighs fits no graph runtime.

Knows nothing about where the states come from, nor what the scores mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import ModelCorrupt

Vector = NDArray[np.float32]

_EPSILON: Final = 1e-5  # of torch's LayerNorm


class StatesMlp:
    """Standardise, then linear layers with LayerNorm and ReLU; calibrated scores at the end.

    The arrays of the file: `mean`, `scale`; for each hidden layer i `weight.i`, `bias.i`, `gain.i`,
    `shift.i`; `toxic.weight`, `toxic.bias` on the last hidden layer and `category.weight`,
    `category.bias` on the second; `calibration` as slope, offset and temperature.
    """

    def __init__(self, path: Path) -> None:
        """Read an `.npz` file.

        Raises:
            ModelCorrupt: it is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name].astype(np.float32) for name in file.files}
            self._mean, self._scale = arrays["mean"], arrays["scale"]
            depth = sum(name.startswith("gain.") for name in arrays)
            self._layers = [
                tuple(arrays[f"{part}.{index}"] for part in ("weight", "bias", "gain", "shift"))
                for index in range(depth)
            ]
            self._toxic = arrays["toxic.weight"], arrays["toxic.bias"]
            self._category = arrays["category.weight"], arrays["category.bias"]
            self._slope, self._offset, self._temperature = arrays["calibration"]
        except (OSError, ValueError, KeyError) as exc:
            raise ModelCorrupt(f"{path} holds no such model: {exc!r}") from exc

    def scores(self, states: Vector) -> Vector:
        """Score of each category for one prompt, from what each layer left: (layers, hidden).

        The likeliest category has the probability that the prompt is toxic, the others follow in
        the ratio of their likelihoods.
        """
        hidden = (states.reshape(-1) - self._mean) / self._scale
        logits = hidden[:0]
        for index, (weight, bias, gain, shift) in enumerate(self._layers):
            hidden = weight @ hidden + bias
            deviation = hidden - hidden.mean()
            hidden = deviation / np.sqrt(np.mean(deviation**2) + _EPSILON) * gain + shift
            hidden = np.maximum(hidden, 0)
            if index == 1:
                logits = self._category[0] @ hidden + self._category[1]
        toxic = float((self._toxic[0] @ hidden + self._toxic[1])[0])
        probability = 1 / (1 + np.exp(-(self._slope * toxic + self._offset)))
        relative = np.exp((logits - logits.max()) / self._temperature)
        found: Vector = (probability * relative).astype(np.float32)
        return found
