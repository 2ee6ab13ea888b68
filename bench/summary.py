"""Many numbers in one: percentiles of a sample, the middle and the ends of several rounds.

Knows nothing about what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """What several rounds gave."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The middle and the ends of `values`, of which there is at least one."""
        found = sorted(values)
        return cls(median(found), found[0], found[-1])


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A sample of times, in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, sample: Iterable[float]) -> Percentiles:
        """The percentiles of `sample`, which is not empty."""
        found = sorted(sample)
        return cls(*(percentile(found, share) for share in (0.50, 0.95, 0.99)))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the ordered values that `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
