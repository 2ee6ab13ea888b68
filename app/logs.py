"""Structured logs: one pipeline for our events, the standard library's and uvicorn's.

Knows nothing about what is logged. The message of a library or of a foreign exception may quote
user text, so of these only names and places in the code are written.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import PurePath
from types import TracebackType
from typing import Any, Final

import structlog
from asgi_correlation_id import correlation_id
from structlog.typing import EventDict, Processor

from app.domain.errors import SluicewayError

REQUEST_ID_HEADER: Final = "x-guard-request-id"
"""What the correlation middleware reads and writes."""

UVICORN_OPTIONS: Final[dict[str, Any]] = {"log_config": None, "access_log": False}
"""Arguments of `uvicorn.Config` that leave logging to us. An access log would show queries."""

# Its lifecycle messages ("Started server process") come from these two files; those of the
# protocols quote what a client sent.
_UVICORN_FILES: Final = frozenset({"server", "on"})


def configure(level: str = "info", *, json: bool | None = None) -> None:
    """Send everything that this process reports to standard error, one line for each event.

    For the process, so it belongs to the command line: an app under test does not call it.
    Without `json` a terminal gets readable lines and everything else gets JSON.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _describe_exception,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_reduce_foreign_record, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
            ],
        )
    )
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("uvicorn.access").disabled = True
    logging.raiseExceptions = False  # it prints the arguments of a record that it cannot format
    _catch_uncaught()


def _add_request_id(_logger: object, _method: str, event: EventDict) -> EventDict:
    if (request_id := correlation_id.get()) is not None:
        event.setdefault("request_id", request_id)
    return event


def _reduce_foreign_record(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Keep of a library's record who spoke and where in its code, which names the message."""
    record: logging.LogRecord = event["_record"]
    reduced: EventDict = {
        "event": "library_log",
        "at": f"{record.module}.{record.funcName}:{record.lineno}",
        "_record": record,
        "_from_structlog": False,
    }
    if record.name.startswith("uvicorn") and record.module in _UVICORN_FILES:
        first = event["event"].partition("\n")[0]
        # A failed start comes as a whole traceback in the message; the lifespan has logged it.
        if not first.startswith("Traceback"):
            reduced["message"] = first
    if record.exc_info:
        reduced["exc_info"] = record.exc_info
    return reduced


def _describe_exception(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the classes and frames of the exception and its causes."""
    error = _exception_of(event.pop("exc_info", None))
    event.pop("stack_info", None)
    if error is not None:
        event["exceptions"] = [_description(one) for one in _chain(error)]
    return event


def _exception_of(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        error: BaseException | None = exc_info[1]
        return error
    return sys.exc_info()[1] if exc_info else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then what it came from or what it groups."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(one.exceptions)
        origin = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if origin is not None:
            waiting.append(origin)


def _description(error: BaseException) -> dict[str, Any]:
    described: dict[str, Any] = {"type": type(error).__qualname__}
    if isinstance(error, SluicewayError):
        # Our own messages hold no user text: that is the contract of `domain.errors`.
        described["message"] = str(error)
    described["frames"] = [
        f"{_place(frame.filename, frame.lineno)} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return described


def _place(file: str, line: int | None) -> str:
    return f"{'/'.join(PurePath(file).parts[-2:])}:{line}"


def _catch_uncaught() -> None:
    """Log without its message what Python would print with it."""
    log = structlog.get_logger(__name__)

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.critical("uncaught_exception", exc_info=error)

    def uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread else None
        log.critical("uncaught_exception", thread=name, exc_info=failure.exc_value)

    def unraisable(failure: sys.UnraisableHookArgs) -> None:
        log.error("unraisable_exception", exc_info=failure.exc_value)

    def warned(
        _message: object, category: type[Warning], file: str, line: int, *_output: object
    ) -> None:
        log.warning("python_warning", type=category.__qualname__, at=_place(file, line))

    warnings.showwarning = warned  # type: ignore[assignment] # called with positions only
    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable
