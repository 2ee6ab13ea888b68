"""The arms of the comparison: each method at several strengths.

Knows nothing about tensors. The numbers stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from app.rectification.steering import Control

MethodName = Literal[
    "none",
    "bad words",
    "authors' loop",
    "exact cap",
    "tilt",
    "cap after tilt",
    "gated cap after tilt",
    "gedi",
    "dexperts",
    "best of k",
    "policy",
]

CRITICAL: Final = frozenset(
    {"authors' loop", "exact cap", "tilt", "cap after tilt", "gated cap after tilt",
     "best of k", "policy"}
)  # fmt: skip
"""The methods that ask the critic."""
OURS: Final = frozenset({"exact cap", "tilt", "cap after tilt", "gated cap after tilt", "policy"})
"""The methods that the service offers."""

_GATE: Final = 0.1
_TOP_K: Final = 20


@dataclass(frozen=True, slots=True)
class Arm:
    """A method at one strength, which is epsilon, beta, omega, alpha or k, whichever it has."""

    method: MethodName
    strength: float = 0.0
    control: Control | None = None

    @property
    def name(self) -> str:
        """For tables."""
        if self.control is not None:
            control = self.control
            parts = {"epsilon": control.epsilon, "beta": control.beta, "gate": control.gate}
            used = [f"{word} {value:g}" for word, value in parts.items() if value]
            return " ".join((self.method, *(used or ["epsilon 0"])))
        words = {"gedi": "omega", "dexperts": "alpha", "authors' loop": "epsilon"}
        if self.method == "best of k":
            return f"best of {self.strength:g}"
        of = words.get(self.method)
        return self.method if of is None else f"{self.method} {of} {self.strength:g}"


def arms(*, quick: bool, policy: Control | None = None) -> list[Arm]:
    """All of them, `none` first, the strengths of a method from the gentlest on.

    Args:
        quick: Fewer strengths.
        policy: The control that the service ships with, if it steers.
    """
    found = [Arm("none"), Arm("bad words")]
    found += _capped(quick=quick)
    found += _tilted(quick=quick)
    found += [Arm("gedi", omega) for omega in ((10.0,) if quick else (3.0, 10.0, 30.0))]
    found += [Arm("dexperts", alpha) for alpha in ((1.0,) if quick else (0.5, 1.0, 2.0))]
    found += [Arm("best of k", k) for k in ((4,) if quick else (4, 16))]
    if policy is not None:
        found.append(Arm("policy", max(policy.epsilon, policy.beta), policy))
    return found


def _capped(*, quick: bool) -> Iterator[Arm]:
    epsilons = (0.1, 0.4) if quick else (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
    yield from (Arm("authors' loop", epsilon) for epsilon in epsilons)
    yield from (Arm("exact cap", epsilon, Control("cap", epsilon)) for epsilon in epsilons)


def _tilted(*, quick: bool) -> Iterator[Arm]:
    betas = (10.0, 50.0) if quick else (3.0, 10.0, 30.0, 100.0, 300.0)
    yield from (Arm("tilt", beta, Control("tilt", beta=beta, top_k=_TOP_K)) for beta in betas)
    for beta in betas[1:] if quick else betas:
        yield Arm("cap after tilt", beta, Control("tilt_cap", 0.3, beta, _TOP_K))
    for beta in betas[1:] if quick else betas:
        yield Arm("gated cap after tilt", beta, Control("tilt_cap", 0.3, beta, _TOP_K, _GATE))
