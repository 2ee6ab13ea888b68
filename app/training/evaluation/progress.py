"""A bar on standard error for work that takes long; nothing but its label where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps; call what is given for each one."""
    with typer.progressbar(length=total, label=f"{label:<28}", file=sys.stderr) as bar:
        yield lambda: bar.update(1)
