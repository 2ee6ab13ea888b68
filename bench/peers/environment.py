"""One virtual environment for each peer: their requirements contradict each other.

Knows nothing about what the peers do. Texts leave this process through a pipe only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer said of one text, and how long it took."""

    score: float
    caught: bool
    ms: float


class PeerFailed(Exception):
    """A peer could not be installed, or ended before it had answered."""


def prepare(name: str) -> Path:
    """The interpreter of the peer's environment, made when it is not there yet."""
    folder = _HERE / ".venv" / name
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists():
        requirements = _HERE / "requirements" / f"{name}.txt"
        _run([sys.executable, "-m", "venv", str(folder)], name)
        _run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], name)
        done.touch()
    return python


def ask(name: str, texts: Iterable[str]) -> list[Answer]:
    """The peer's answers, one for each text, in order.

    Raises:
        PeerFailed: It ended before it had answered.
    """
    python = prepare(name)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    # One thread: the peers are compared by their time, too.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [str(python), str(_HERE / "score.py"), name],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    answers = [Answer(**json.loads(line)) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != lines.count("\n"):
        # Not its error output: that may hold a text.
        raise PeerFailed(f"{name} ended with {done.returncode} after {len(answers)} answers")
    return answers


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerFailed(f"{name} cannot be installed: {done.stderr.strip()[-400:]}")
