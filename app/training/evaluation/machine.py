"""When and on what a report was made: enough to judge its times, nothing that names the machine.

Knows nothing about the results.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime


@dataclass(frozen=True, slots=True)
class Machine:
    """`load` is the average number of busy threads in the minute before the end."""

    date: str
    cpu: str
    cores: int
    load: float
    python: str
    onnxruntime: str

    def describe(self) -> str:
        """One line for a report."""
        return (
            f"{self.date}; {self.cores} cores ({self.cpu}), load {self.load:.1f}; "
            f"Python {self.python}, ONNX Runtime {self.onnxruntime}"
        )


def this_machine() -> Machine:
    """The machine as it is now."""
    return Machine(
        date=datetime.now(UTC).date().isoformat(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        load=round(os.getloadavg()[0], 1),
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text("utf-8").splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
