"""What the commands do with an error of the one who typed them.

Knows nothing about the commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.domain.errors import ConfigurationError, UnknownPolicy


@contextmanager
def told() -> Iterator[None]:
    """A wrong configuration is a message and exit code 2, not a traceback."""
    try:
        yield
    except (ConfigurationError, SettingsError, UnknownPolicy) as error:
        typer.echo(f"sluiceway: {error}", err=True)
        raise typer.Exit(2) from None
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            place = "__".join(str(part).upper() for part in problem["loc"])
            typer.echo(f"sluiceway: SLUICEWAY_{place}: {problem['msg']}", err=True)
        raise typer.Exit(2) from None
