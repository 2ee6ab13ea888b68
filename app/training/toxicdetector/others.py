"""Other data: the public sets that show what a detector does where it was not trained.

Knows nothing about detectors.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import numpy as np

from app.training.corpus.datasets import read_rows
from app.training.metrics import Scores

SETS: Final = {
    "xstest": 450,
    "jailbreakbench": 198,
    "notinject": 339,
    "aegis_test": 359,
    "simple_safety_tests": 100,
    "toxicchat_test": 250,
    "wildguard_test": 200,
    "openai_moderation": 200,
}
"""How many rows of each are scored: of the long ones a sample, as they are read on one thread."""


def other_sets(data: Path) -> dict[str, tuple[list[str], Scores]]:
    """Texts and labels by the name of the set; only for scoring."""
    found = {}
    for name, most in SETS.items():
        rows = [row for row in read_rows(data / "test" / f"{name}.jsonl.gz") if row["text"].strip()]
        if len(rows) > most:
            rows = random.Random(7).sample(rows, most)  # noqa: S311 - a fixed sample
        labels = np.asarray([row["unsafe"] for row in rows], np.float64)
        found[name] = ([row["text"] for row in rows], labels)
    return found
