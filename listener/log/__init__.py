"""The one place that configures logging: structlog, and what the standard library's logging and warnings bring in.

A line has `time` (RFC 3339, UTC, milliseconds), `level`, `event` (a stable dotted name; docs/LOGS.md lists all)
and typed fields. On a terminal it is coloured text, in the journal of systemd a field for each value, elsewhere one
JSON object. Values under keys that name a secret are masked, and so are credentials inside texts and tracebacks.
Failures that repeat are summed up.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TextIO, TypeAlias

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from listener.errors import ConfigError, Problem
from listener.log import journald
from listener.log.audit import AuditFile
from listener.log.masks import MASK, mask_secrets
from listener.log.repeats import WINDOW, Repeats

__all__ = [
    "MASK",
    "Format",
    "Level",
    "change",
    "configure",
    "mask_secrets",
    "open_audit",
    "tell_repeated",
    "watch",
]

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Format: TypeAlias = Literal["auto", "console", "json", "journal"]

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}
AUDIT: Final = "audit.identity_used"
"""What is logged at every level: to have it is no matter of how much somebody wants to read."""


class _State:
    """What a processor must look up: loggers that are bound to a value keep the processors of their first day."""

    least = audit = logging.INFO
    repeats = Repeats()
    clock: Callable[[], float] = time.monotonic
    journal: journald.JournalLogger | None = None
    watch: Callable[[str, Mapping[str, Any]], None] | None = None


def configure(
    level: Level = "info",
    format: Format = "auto",  # noqa: A002  (the configuration's own word)
    stream: TextIO | None = None,
    *,
    audit: bool = True,
    sum_up: float = WINDOW,
    journal: str = journald.SOCKET,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send all logging to `stream` (standard error if None), or to the journal's socket. May be called again.

    Without `audit`, the audit counts as other lines do: for commands whose standard error nobody keeps.

    Lines of other libraries (httpx and httpcore from warning on, all others from `level` on) come as `python.log`,
    warnings as `python.warning`. Failures that repeat are told once in `sum_up` seconds
    of `clock`.
    """
    stream = sys.stderr if stream is None else stream
    if format == "auto":
        format = _fitting(stream)  # noqa: A001
    _State.repeats, _State.clock = Repeats(sum_up), clock
    _State.audit = logging.INFO if audit else _LEVELS[level]
    if _State.journal is not None:
        _State.journal.close()
        _State.journal = None
    end: tuple[Processor, ...]
    factory: Callable[..., WrappedLogger]
    match format:
        case "console":
            end, factory = _console_end(stream), structlog.PrintLoggerFactory(stream)
        case "json":
            end, factory = (_first_things_first, _to_json), structlog.BytesLoggerFactory(stream.buffer)
        case "journal":
            _State.journal = logger = journald.JournalLogger(journal, partial(_write_json, stream))
            end, factory = (_first_things_first, _as_argument), lambda *_: logger
    structlog.configure(
        processors=[
            _drop_the_lesser,
            structlog.contextvars.merge_contextvars,
            _sum_up,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _add_time,
            mask_secrets,
            *end,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    change(level, sum_up)
    logging.captureWarnings(True)


def change(level: Level, sum_up: float) -> None:
    """The least that is logged from now on, by every logger that there is, and how long failures are summed up.

    The audit is logged in any case.
    """
    _State.repeats.window = sum_up
    _State.least = _LEVELS[level]
    logging.getLogger().setLevel(_LEVELS[level])
    for library in ("httpx", "httpcore", "hypercorn", "msal", "spnego"):
        logging.getLogger(library).setLevel(max(_LEVELS[level], logging.WARNING))


def watch(tell: Callable[[str, Mapping[str, Any]], None] | None) -> None:
    """Hands every line, of whatever level, to somebody who looks on; None ends that."""
    _State.watch = tell


def tell_repeated(*, everything: bool = False) -> None:
    """Tells how often failures were repeated in minutes that are over; or all that has been held back.

    To be called every few seconds, and with `everything` at the end.
    """
    for method, line, count, seconds in _State.repeats.due(_State.clock(), everything=everything):
        fields = {key: value for key, value in line.items() if key not in ("event", "exc_info")}
        fields |= {"repeated": count, "within": round(seconds, 1)}
        structlog.get_logger().log(_LEVELS[method], line["event"], **fields)


@contextmanager
def open_audit(path: Path | None) -> Iterator[Any]:
    """The logger of the audit: lines of JSON at the end of the file, or the common log without one.

    Raises ConfigError if the file cannot be opened. When a line cannot be written, logging it raises OSError.
    """
    if path is None:
        yield structlog.get_logger()
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = AuditFile(path)
    except OSError as error:
        raise ConfigError([Problem("log.audit_file", f"cannot write {path}: {error.strerror}")]) from error
    with closing(file):
        yield structlog.wrap_logger(
            file,
            processors=[
                structlog.processors.add_log_level,
                _add_time,
                mask_secrets,
                _first_things_first,
                _to_json,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        )


def _fitting(stream: TextIO) -> Literal["console", "json", "journal"]:
    if journald.is_journal(stream, os.environ):
        return "journal"
    return "console" if stream.isatty() else "json"


def _drop_the_lesser(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if _State.watch is not None:
        _State.watch(method, mask_secrets(None, method, {**event}))
    least = _State.audit if event["event"] == AUDIT else _State.least
    if _LEVELS[method] < least:
        raise structlog.DropEvent
    return event


def _sum_up(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if "repeated" not in event and not _State.repeats.admits(method, event, _State.clock()):
        raise structlog.DropEvent
    return event


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["time"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _first_things_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    head = {key: event.pop(key) for key in ("time", "level", "event") if key in event}
    return head | dict(event)


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    try:
        return _ENCODER.encode(event)
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(event, default=repr).encode()


def _as_argument(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> tuple[tuple[EventDict], dict[str, Any]]:
    return (event,), {}


def _write_json(stream: TextIO, line: Mapping[str, Any]) -> None:
    stream.buffer.write(_to_json(None, "", dict(line)) + b"\n")
    stream.buffer.flush()


def _console_end(stream: TextIO) -> tuple[Processor, ...]:
    return (
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty() and "NO_COLOR" not in os.environ,
            timestamp_key="time",
            pad_event_to=24,
            exception_formatter=structlog.dev.plain_traceback,
        ),
    )


class _ToStructlog(logging.Handler):
    """Hands the records of the standard library's loggers on, and of warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        text = record.getMessage()
        if record.name == "py.warnings":
            log.warning("python.warning", message=text.strip())
            return
        error = record.exc_info if record.exc_info and record.exc_info[0] else None
        level = min(max(record.levelno, logging.DEBUG), logging.CRITICAL) // 10 * 10
        log.log(level, "python.log", logger=record.name, message=text, exc_info=error)


_ENCODER = msgspec.json.Encoder(enc_hook=repr)
