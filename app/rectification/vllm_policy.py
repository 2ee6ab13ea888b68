"""What a vLLM server with rectification allows its requests; read from the environment.

Knows nothing about batches or tensors. A request names what it wants in
`SamplingParams.extra_args` (over HTTP: `vllm_xargs`); it can make the steering stronger within the
server's bounds, never weaker, and never send a bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from app.rectification.sampling import Sampling
from app.rectification.steering import MODES, Bounds, Control, Mode, bounded

PREFIX: Final = "SLUICEWAY_RECTIFICATION__"
MODE_KEY: Final = "rectification_mode"
EPSILON_KEY: Final = "rectification_epsilon"
BETA_KEY: Final = "rectification_beta"
# vLLM filters after the caps. With fewer tokens left than these leave, the caps could not hold, or
# only by making the best tokens equal.
LEAST_TOP_P: Final = 0.5
LEAST_TOP_K: Final = 10
_KEYS: Final = frozenset({MODE_KEY, EPSILON_KEY, BETA_KEY})
# Neutral values of the parameters that vLLM applies after a custom processor, or that would steer
# against it: any other value is refused while a request is rectified.
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "logit_bias": (None, {}),
    "min_p": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "repetition_penalty": (None, 1.0),
}


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """The critic's folder, the default control, and how far a request may go from it."""

    critic: Path
    control: Control
    bounds: Bounds
    logprobs: bool

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> ServerPolicy | None:
        """Return the policy in the environment; None where no critic is named: nothing is steered.

        Raises:
            ValueError: if a variable holds what it must not; the message names the variable.
        """
        folder = environment.get(PREFIX + "CRITIC", "")
        if not folder:
            return None
        modes = tuple(_mode(name) for name in _names(environment))
        control = Control(
            mode=modes[0],
            epsilon=_number(environment, "EPSILON", 0.0),
            beta=_number(environment, "BETA", 0.0),
            top_k=int(_number(environment, "TOP_K", 20)),
            gate=_number(environment, "GATE", 0.0),
        )
        bounds = Bounds(
            epsilon=(control.epsilon, _number(environment, "EPSILON_MAX", 1.0)),
            beta=(control.beta, _number(environment, "BETA_MAX", max(control.beta, 300.0))),
            modes=modes,
        )
        shown = environment.get(PREFIX + "LOGPROBS", "false").lower() == "true"
        return cls(Path(folder), control, bounds, shown)

    def control_of(self, params: Any) -> Control:
        """Return the control of a request, within the bounds.

        Raises:
            ValueError: if it asks for something unknown, malformed or not allowed.
        """
        asked = _asked(getattr(params, "extra_args", None) or {})
        if asked.get("mode", self.control.mode) not in self.bounds.modes:
            raise ValueError(f"this {MODE_KEY} is not allowed by the server")
        return bounded(replace(self.control, **asked), self.bounds)

    def check(self, params: Any) -> None:
        """Refuse a request whose parameters are wrong or would undo the control.

        Raises:
            ValueError: with the name of the parameter, never its value.
        """
        if self.control_of(params).mode == "off":
            return
        for name, neutral in _NEUTRAL.items():
            if getattr(params, name, None) not in neutral:
                raise ValueError(f"{name} cannot be combined with rectification")
        sampling = sampling_of(params)
        if sampling.kept < LEAST_TOP_P:
            raise ValueError(f"top_p must be at least {LEAST_TOP_P} with rectification")
        if not sampling.greedy and 0 < sampling.top_k < LEAST_TOP_K:
            raise ValueError(f"top_k must be 0, 1 or at least {LEAST_TOP_K} with rectification")
        if self.logprobs:
            return
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(params, name, None) is not None:
                raise ValueError(f"{name} are hidden by this server while it rectifies")


def sampling_of(params: Any) -> Sampling:
    """Return what vLLM will apply to the row after a custom processor."""
    return Sampling(
        temperature=float(params.temperature),
        top_k=max(int(params.top_k), 0),  # -1 is vLLM's older word for all
        top_p=float(params.top_p),
    )


def _asked(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    names = {name for name in extra_args if name.startswith("rectification_")}
    if names - _KEYS:
        raise ValueError(
            "a parameter of rectification is unknown; known are " + ", ".join(sorted(_KEYS))
        )
    asked: dict[str, Any] = {}
    if MODE_KEY in names:
        asked["mode"] = _mode(extra_args[MODE_KEY])
    for key, field, high in ((EPSILON_KEY, "epsilon", 1.0), (BETA_KEY, "beta", math.inf)):
        if key in names:
            value = extra_args[key]
            # A bool is an int to Python; NaN compares false with everything.
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{key} must be a number")
            if not (0 <= value <= high and math.isfinite(value)):
                raise ValueError(f"{key} is out of range")
            asked[field] = float(value)
    return asked


def _names(environment: Mapping[str, str]) -> list[str]:
    """The server's mode first, then the others that a request may choose."""
    own = environment.get(PREFIX + "MODE", "cap")
    others = environment.get(PREFIX + "MODES", "").split(",")
    return [own, *(name.strip() for name in others if name.strip() not in {"", own})]


def _mode(name: object) -> Mode:
    if name not in MODES:
        raise ValueError("the mode of rectification must be one of " + ", ".join(MODES))
    return name


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(PREFIX + name)
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{PREFIX}{name} must be a number") from None
