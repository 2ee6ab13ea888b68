"""Trains a critic with each kind of target on the same texts and compares them.

Knows nothing about export. Both see the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from app.training.critic.calibration import calibrate, risk_logits, risks_of
from app.training.critic.fitting import Plan
from app.training.critic.measuring import figures, stop_thresholds
from app.training.critic.targets import TargetName
from app.training.critic.trainer import Setting, fitted, prepare
from app.training.moderator.comparison import table

WAYS: Final[Sequence[TargetName]] = get_args(TargetName)


def compare(setting: Setting, *, epochs: float) -> dict[str, Mapping[str, Any]]:
    """Figures of both on held-out rollouts after as many passes; prints a table."""
    ready = prepare(setting)
    held_out, measured = (ready.material.parts[part] for part in ("calibration", "measure"))
    found: dict[str, Mapping[str, Any]] = {}
    for way in WAYS:
        run = ready.run(f"compare-{epochs:g}-{way}")
        critic, _ = fitted(ready, run, Plan(epochs=epochs), way)
        raw = figures(risks_of(risk_logits(critic, measured)), measured, {})
        slope, offset = calibrate(critic, held_out)
        points = stop_thresholds(risks_of(risk_logits(critic, held_out)), held_out)
        after = figures(risks_of(risk_logits(critic, measured)), measured, points)
        found[way] = {
            "error before calibration": raw["calibration_error"],
            "slope": round(slope, 3),
            "offset": round(offset, 3),
            "error": after["calibration_error"],
            "cross-entropy": after["cross_entropy"],
            **{f"AUROC at {share}": value for share, value in after["running_auroc"].items()},
            "stopped early": after["stops"]["balanced"]["unsafe_stopped_early"],
        }
    print(table(found))
    return found
