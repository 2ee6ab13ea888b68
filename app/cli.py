"""The `sluiceway` command: serve, moderate, models, key, train, eval, bench.

Knows nothing about how the work is done: each command calls one function.
"""

from __future__ import annotations

import asyncio
import runpy
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import orjson
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from app import logs
from app.config import ServerSettings, Settings, shipped
from app.domain.conversation import Conversation, Stage
from app.domain.errors import ConfigurationError, UnknownPolicy

app = typer.Typer(
    name="sluiceway", no_args_is_help=True, add_completion=False, help="A guardrail for LLMs."
)
_train = typer.Typer(no_args_is_help=True, help="Train a detector (needs the extra `train`).")
app.add_typer(_train, name="train")

_SEPARATOR: Final = "\n"


@contextmanager
def _told() -> Iterator[None]:
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


def _settings() -> Settings:
    settings = Settings()
    style = settings.logs.style
    logs.configure(settings.logs.level, json=None if style == "auto" else style == "json")
    return settings


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve the guard over HTTP."""
    import uvicorn  # noqa: PLC0415 - the other commands do not need a server

    from app.main import create_app  # noqa: PLC0415

    with _told():
        settings = _settings()
        asked = {"host": host, "port": port}
        chosen = {name: value for name, value in asked.items() if value is not None}
        server = ServerSettings(**{**settings.server.model_dump(), **chosen})
        settings = settings.model_copy(update={"server": server})
        typer.echo(
            f"sluiceway: loading; will listen on http://{server.host}:{server.port}", err=True
        )
        # The model's thread needs the interpreter for an instant between two batches. With the
        # default of 5 ms it would wait that long for the event loop's thread, and run idle.
        sys.setswitchinterval(0.0005)
        uvicorn.run(
            create_app(settings),
            host=server.host,
            port=server.port,
            timeout_graceful_shutdown=server.shutdown_grace_s,
            server_header=False,
            ws="none",
            **logs.UVICORN_OPTIONS,
        )


@app.command()
def moderate(
    text: Annotated[
        str | None, typer.Argument(help="The text; without it, standard input.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file with one text a line.", exists=True, dir_okay=False)
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Name of the policy.")] = None,
    stage: Annotated[Stage, typer.Option(help="Which side of the model.")] = Stage.INPUT,
    *,
    whole: Annotated[
        bool, typer.Option("--whole", help="File or standard input is one text, not one a line.")
    ] = False,
) -> None:
    """Judge texts without a server: one JSON object a line. Exits with 1 if any is blocked."""
    with _told():
        texts = [text] if text is not None else _texts(file, whole=whole)
        blocked = asyncio.run(_moderate(_settings(), texts, policy, stage))
    raise typer.Exit(1 if blocked else 0)


def _texts(file: Path | None, *, whole: bool) -> list[str]:
    content = file.read_text("utf-8") if file else sys.stdin.read()
    return [content] if whole else [line for line in content.split(_SEPARATOR) if line.strip()]


async def _moderate(
    settings: Settings, texts: list[str], policy_name: str | None, stage: Stage
) -> bool:
    from app.api.replies import verdict_json  # noqa: PLC0415
    from app.assembly import open_guard  # noqa: PLC0415 - loads the runtime of the models
    from app.metrics import Metrics  # noqa: PLC0415

    blocked = False
    async with open_guard(settings, Metrics()) as guard:
        policy = guard.policies.get(policy_name or guard.policies.default)
        for text in texts:
            verdict = await guard.engine.moderate(
                Conversation.of_text(text), stage, policy, endpoint="cli"
            )
            blocked = blocked or verdict.blocks
            typer.echo(orjson.dumps(verdict_json(verdict, explain=True)).decode())
    return blocked


@app.command()
def models() -> None:
    """Show the models: revision, digests, licences, data. One JSON object a model."""
    from app.assembly import PROMPT_DETECTOR_FOLDER  # noqa: PLC0415
    from app.generation import weights  # noqa: PLC0415
    from app.inference.artefact import load_artefact  # noqa: PLC0415

    with _told():
        card = load_artefact(Settings().models.folder / PROMPT_DETECTOR_FOLDER)
    described: list[dict[str, Any]] = [
        {
            "name": card.name,
            "revision": card.revision,
            "licence": card.licence,
            "digest": card.digest,
            "files": dict(card.files),
            "data": [
                {"name": source.name, "licence": source.licence, "open": source.open_licence}
                for source in card.sources
            ],
            "metrics": dict(card.metrics),
        },
        {
            "name": weights.MODEL_NAME,
            "revision": weights.MODEL_REVISION,
            "licence": weights.MODEL_LICENCE,
            "digest": weights.SOURCE_SHA256,
            "installed": weights.is_installed(),
        },
    ]
    for model in described:
        typer.echo(orjson.dumps(model).decode())


@app.command()
def key() -> None:
    """Make a new API key; give the key to the caller and the sha256 to `SLUICEWAY_AUTH__KEYS`."""
    made = f"sw-{secrets.token_urlsafe(32)}"
    typer.echo(f"key     {made}")
    typer.echo(f"sha256  {sha256(made.encode()).hexdigest()}")


@_train.command("prompt-detector")
def train_prompt_detector(
    data: Annotated[
        Path, typer.Option(help="Folder with train/ and dev/.", exists=True, file_okay=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Model folder to write.")] = None,
    licences: Annotated[
        Literal["all", "open"], typer.Option(help="Sources to use: all, or open ones only.")
    ] = "all",
    cache: Annotated[Path, typer.Option(help="Folder for embeddings; a run resumes.")] = Path(
        "cache"
    ),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
) -> None:
    """Train the toxic prompt detector and export it."""
    from app.training.prompt_detector.trainer import train  # noqa: PLC0415 - an extra

    with _told():
        target = out or Settings().models.folder / "prompt-detector"
        train(data, target, licences=licences, cache=cache, seed=seed)


@app.command("eval")
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder with train/ and test/.", exists=True)],
    limit: Annotated[
        int | None, typer.Option(help="At most so many rows of a set; without it, all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
) -> None:
    """Score the detectors on labelled test sets beside a bag-of-words floor."""
    from app.training.evaluation.run import run  # noqa: PLC0415 - an extra

    with _told():
        run(data, models=Settings().models.folder, limit=limit, out=out)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure speed and memory; all options go to `bench/run.py`."""
    script = shipped("bench") / "run.py"
    with _told():
        if not script.is_file():
            raise ConfigurationError("the benchmark is in the repository only, not in the package")
    raise typer.Exit(runpy.run_path(str(script))["main"](context.args))


def main() -> None:
    """Entry point of the `sluiceway` script."""
    app()
