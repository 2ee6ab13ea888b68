"""What the benchmark runs on: enough to judge the numbers, nothing that names the machine.

Knows nothing about the measurements.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime

_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "amx_int8")


@dataclass(frozen=True, slots=True)
class Machine:
    """The parts that the numbers depend on. `cpu_flags` tells for each flag whether it is there."""

    cores: int
    cpu: str
    cpu_flags: dict[str, bool]
    memory_gb: float
    gpu: str | None
    python: str
    onnxruntime: str

    @property
    def slug(self) -> str:
        """A name for files, such as `8cpu` or `8cpu-nvidia-l4`."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-") if self.gpu else ""
        return f"{self.cores}cpu" + (f"-{gpu}" if gpu else "")

    def describe(self) -> str:
        """One line for the table."""
        flags = ", ".join(f"{name} {'yes' if on else 'no'}" for name, on in self.cpu_flags.items())
        return (
            f"{self.cores} cores ({self.cpu}; {flags}), {self.memory_gb:.0f} GB memory, "
            f"{self.gpu or 'no GPU'}, Python {self.python}, ONNX Runtime {self.onnxruntime}"
        )


def this_machine() -> Machine:
    """The machine as this process may use it."""
    cpu = _read("/proc/cpuinfo")
    flags = set(_field(cpu, "flags").split())
    kilobytes = _field(_read("/proc/meminfo"), "MemTotal").split() or ["0"]
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        cpu=_field(cpu, "model name") or platform.machine(),
        cpu_flags={flag: flag in flags for flag in _FLAGS},
        memory_gb=round(int(kilobytes[0]) / 2**20, 1),
        gpu=_gpu(),
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
    )


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text("utf-8") if file.exists() else ""


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _gpu() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    names = answer.stdout.splitlines()
    return names[0].strip() if answer.returncode == 0 and names else None
