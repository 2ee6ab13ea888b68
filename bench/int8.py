"""Times graphs of one model beside each other: `python -m bench.int8 fp32.onnx int8.onnx ...`.

Knows nothing about scores. One thread; the graphs take turns, so that other work hits them alike.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnxruntime as ort

_SHAPES: Final = ((1, 32), (1, 126), (32, 32))
"""Texts of a batch, and tokens of each."""
_ROUNDS: Final = 30
_IDS: Final = (1000, 7000)
"""Token ids that every vocabulary here has."""


def main(paths: list[str]) -> None:
    """Print median and minimum for each shape and graph, and the ratios to the first graph."""
    sessions = {path: _session(path) for path in paths}
    for path in paths:
        print(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB")
    for shape in _SHAPES:
        ids = np.random.default_rng(0).integers(*_IDS, shape)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        taken: dict[str, list[float]] = {path: [] for path in paths}
        for _ in range(_ROUNDS):
            for path, session in sessions.items():
                session.run(None, feed)
                start = time.perf_counter()
                session.run(None, feed)
                taken[path].append(1000 * (time.perf_counter() - start))
        first = taken[paths[0]]
        for path, times in taken.items():
            print(
                f"{shape[0]} x {shape[1]}  median {median(times):.1f} ms, min {min(times):.1f} ms, "
                f"{median(first) / median(times):.2f}x ({min(first) / min(times):.2f}x)  {path}"
            )


def _session(path: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main(sys.argv[1:])
