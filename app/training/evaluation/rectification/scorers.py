"""Who says how toxic a continuation is: the critic's own teacher, and somebody it never met.

Knows nothing about arms. What was scored is kept on disk. Texts leave this process through a pipe
only, and stand in no message.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from app.config import shipped
from app.domain.errors import DetectorError
from app.training.critic.kept import Kept
from app.training.critic.labels import Judge, Output
from app.training.metrics import Scores

ALONE: Final = "moderator"
IN_CONTEXT: Final = "moderator, prompt as context"
INDEPENDENT: Final = "alt-profanity-check"
INSTALL: Final = "make scorer"

_AT_ONCE: Final = 4_096


class Scorer(Protocol):
    """Somebody's view of continuations."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    def scores(self, outputs: Sequence[Output]) -> Scores:
        """From 0 to 1 for each, in order; nothing said is 0."""
        ...


class ModeratorScorer:
    """The output side of the moderator: of the continuation alone, or as an answer to its prompt.

    Alone is how the published protocol does it.
    """

    def __init__(self, judge: Judge, *, in_context: bool = False) -> None:
        self.name = IN_CONTEXT if in_context else ALONE
        self._judge = judge
        self._in_context = in_context

    def scores(self, outputs: Sequence[Output]) -> Scores:
        """The highest of its categories."""
        alone = [Output(output.text) for output in outputs]
        return self._judge.risks(outputs if self._in_context else alone)


class OutsideScorer:
    """A scorer in an environment of its own: JSON lines in, JSON lines out.

    Args:
        command: Takes `{"text"}` and answers `{"score"}`, line by line.
        name: For tables, and for what is kept.
        cache: The folder for what is kept.
    """

    def __init__(self, command: Sequence[str], name: str, *, cache: Path) -> None:
        self.name = name
        self._command = list(command)
        self._kept = Kept(cache / f"scores-{name}.jsonl")

    def scores(self, outputs: Sequence[Output]) -> Scores:
        """Of each continuation alone.

        Raises:
            DetectorError: It ended before it had answered.
        """
        keys = [sha256(output.text.encode(errors="replace")).hexdigest() for output in outputs]
        missing = {
            key: output.text
            for key, output in zip(keys, outputs, strict=True)
            if key not in self._kept.known and output.text.strip()
        }
        asked = list(missing)
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            answers = self._answers([missing[key] for key in some])
            self._kept.add(dict(zip(some, answers, strict=True)))
        return np.asarray([self._kept.known.get(key, 0.0) for key in keys], np.float64)

    def _answers(self, texts: Sequence[str]) -> list[float]:
        done = subprocess.run(  # noqa: S603 - the command is the project's own
            self._command,
            input="".join(json.dumps({"text": text}) + "\n" for text in texts),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        answers = [float(json.loads(line)["score"]) for line in done.stdout.splitlines()]
        if done.returncode or len(answers) != len(texts):
            # Not its error output: that may hold a text.
            raise DetectorError(f"{self.name} ended with {done.returncode} before it had answered")
        return answers


def independent(cache: Path) -> OutsideScorer | None:
    """The scorer that the critic never saw; None where it is not installed."""
    peers = shipped("bench") / "peers"
    python = peers / ".venv" / INDEPENDENT / "bin" / "python"
    if not python.is_file():
        return None
    command = [str(python), str(peers / "score.py"), INDEPENDENT]
    return OutsideScorer(command, INDEPENDENT, cache=cache)
