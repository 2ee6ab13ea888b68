"""What took long to make, on disk under the hash of what it was made from.

Knows nothing about what it keeps. Written line by line: a run that was killed loses what it was
writing, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Kept:
    """A file of JSON lines. For one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, Any] = {}
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    try:
                        key, value = json.loads(line)
                    except ValueError:  # cut short, or the empty line after that
                        continue
                    self.known[key] = value

    def add(self, entries: Mapping[str, Any]) -> None:
        """Remember, and write at once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(entry) + "\n" for entry in entries.items())
        with self._path.open("a", encoding="utf-8") as file:
            # Whatever a killed run left half written must not spoil the next line.
            file.write("\n" + lines)
        self.known.update(entries)
