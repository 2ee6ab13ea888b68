"""Figures of a critic on held-out rollouts: calibration, ranking as a text grows, early stops.

Knows nothing about how it was trained.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.domain.detection import OperatingPoint
from app.rectification.critic_model import Critic
from app.training import metrics
from app.training.critic.calibration import Trace, returns_of, risk_logits, risks_of
from app.training.critic.texts import Text

QUARTERS: Final = (25, 50, 75, 100)
"""Percent of the judged tokens that have been seen."""
UNSAFE: Final = 0.5
"""Finished texts count as unsafe from this risk on."""

_QUICK: Final = 400


def running(risks: Trace) -> Trace:
    """The risk of the text so far, as a stream detector sees it: (tokens,).

    The highest that two tokens in a row have reached: a single one is often no more than a word
    that could have gone either way.
    """
    both = np.minimum(risks[1:], risks[:-1]) if len(risks) > 1 else risks
    reached: Trace = np.maximum.accumulate(both)
    return reached if len(risks) == 1 else np.concatenate(([0.0], reached))


def stop_thresholds(risks: Sequence[Trace], texts: Sequence[Text]) -> dict[OperatingPoint, float]:
    """The running risk from which a stream is stopped, so that each budget of false stops is kept.

    Raises:
        ValueError: No text is harmless.
    """
    safe = ~_unsafe(texts)
    if not safe.any():
        raise ValueError("thresholds need harmless rollouts")
    peaks = np.asarray([running(each)[-1] for each in risks])
    return metrics.thresholds(peaks[safe])


def figures(
    risks: Sequence[Trace], texts: Sequence[Text], thresholds: Mapping[OperatingPoint, float]
) -> dict[str, Any]:
    """Everything the card says about a critic on some rollouts."""
    labels = _unsafe(texts).astype(np.float64)
    flat, returns = np.concatenate(list(risks)), returns_of(texts)
    so_far = [running(each) for each in risks]
    return {
        "texts": len(texts),
        "unsafe": int(labels.sum()),
        "tokens": len(flat),
        "mean_return": round(float(returns.mean()), 4),
        "mean_risk": round(float(flat.mean()), 4),
        "cross_entropy": round(_cross_entropy(flat, returns), 4),
        "calibration_error": metrics.expected_calibration_error(returns, flat),
        "running_auroc": {
            f"{percent}%": metrics.ranking(labels, _seen(so_far, percent))["auroc"]
            for percent in QUARTERS
        },
        "stops": {
            point.value: stops(so_far, labels == 1, threshold)
            for point, threshold in thresholds.items()
        },
    }


def stops(
    so_far: Sequence[Trace], unsafe: NDArray[np.bool_], threshold: float
) -> dict[str, float | None]:
    """Unsafe texts stopped before their last token, and harmless ones stopped at all."""
    early = np.asarray([bool((each[:-1] >= threshold).any()) for each in so_far])
    ever = np.asarray([bool(each[-1] >= threshold) for each in so_far])
    return {
        "unsafe_stopped_early": _share(early[unsafe]),
        "harmless_stopped": _share(ever[~unsafe]),
    }


def evaluator(texts: Sequence[Text], shift: float) -> Callable[[Critic], Mapping[str, float]]:
    """Quick figures while training goes on; `shift` is taken off every logit first."""
    chance = random.Random(1)  # noqa: S311 - a fixed sample
    some = chance.sample(list(texts), min(_QUICK, len(texts)))
    labels = _unsafe(some).astype(np.float64)
    returns = returns_of(some)

    def evaluate(critic: Critic) -> Mapping[str, float]:
        risks = risks_of([each - shift for each in risk_logits(critic, some)])
        found = {"cross_entropy": round(_cross_entropy(np.concatenate(risks), returns), 4)}
        so_far = [running(each) for each in risks]
        for percent in (50, 100):
            auroc = metrics.ranking(labels, _seen(so_far, percent))["auroc"]
            if auroc is not None:
                found[f"auroc at {percent} %"] = auroc
        return found

    return evaluate


def _unsafe(texts: Sequence[Text]) -> NDArray[np.bool_]:
    return np.asarray([text.risk >= UNSAFE for text in texts])


def _seen(so_far: Sequence[Trace], percent: int) -> Trace:
    return np.asarray([each[math.ceil(len(each) * percent / 100) - 1] for each in so_far])


def _cross_entropy(risks: Trace, returns: Trace) -> float:
    inside = np.clip(risks, 1e-7, 1 - 1e-7)
    return float(-(returns * np.log(inside) + (1 - returns) * np.log(1 - inside)).mean())


def _share(hits: NDArray[np.bool_]) -> float | None:
    return round(float(hits.mean()), 4) if len(hits) else None
