"""Configuration of logging: structlog, the standard library's logging, and Python warnings.

A line has `time` (RFC 3339, UTC, milliseconds), `level`, `event` (a stable dotted name; docs/LOGS.md lists all)
and typed fields. The output is colored text on a terminal, one field per value in the systemd journal, otherwise one
JSON object. Values of keys that name a secret are masked, and so are credentials inside texts and tracebacks.
Repeated failures are rate-limited.

Logging never stops the service: a logger call raises for no value, texts are truncated, and lines that cannot be
written are dropped and counted (listener/log/queue_writer.py).
"""

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TextIO, TypeAlias

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from listener.errors import ConfigError, Problem
from listener.log import journald
from listener.log.audit import AuditFile
from listener.log.queue_writer import EXIT_TIMEOUT, QueueWriter, channel_of, print_errors
from listener.log.rate_limit import WINDOW, RateLimiter
from listener.log.redaction import MASK, redact_secrets
from listener.text import (
    LONGEST_REASON,
    LONGEST_TRACEBACK,
    describe,
    format_traceback,
    printable,
    printable_json,
    represent,
    shortened,
    shortened_inside,
)

__all__ = [
    "MASK",
    "Format",
    "Level",
    "change",
    "close",
    "configure",
    "log_crashes",
    "open_audit",
    "print_errors",
    "redact_secrets",
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
"""This event is logged at every level, because the audit must be complete."""


class _State:
    """Settings that processors look up. Bound loggers keep the processors of the time when they were bound, so a
    later configuration must not be stored in the processors."""

    level = audit_level = logging.INFO
    limiter = RateLimiter()
    clock: Callable[[], float] = time.monotonic
    writers: tuple[QueueWriter[Any], ...] = ()
    renderers: tuple[Processor, ...] = ()
    watch: Callable[[str, Mapping[str, Any]], None] | None = None


def configure(
    level: Level = "info",
    format: Format = "auto",  # noqa: A002  (named like the configuration key)
    stream: TextIO | None = None,
    *,
    audit: bool = True,
    repeat_interval: float = WINDOW,
    journal: str = journald.SOCKET,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send all logging to `stream` (standard error if None), or to the journal's socket. May be called again.

    `audit`: log audit events at every level. Commands whose standard error is not stored set it to False.

    Log records of other libraries are logged as `python.log` (httpx and similar ones from level warning, others from
    `level`), warnings as `python.warning`. Repeated failures are logged once in `repeat_interval` seconds of `clock`.
    """
    stream = sys.stderr if stream is None else stream
    if format == "auto":
        format = _detect_format(stream)  # noqa: A001
    _State.limiter, _State.clock = RateLimiter(repeat_interval), clock
    _State.audit_level = logging.INFO if audit else _LEVELS[level]
    close()
    renderers: tuple[Processor, ...]
    writer: QueueWriter[Any]
    match format:
        case "console":
            renderers = (_printable_values, _console_renderer(stream), _to_line)
            writer = QueueWriter(channel_of(stream), partial(_render_dropped, renderers))
            _State.writers = (writer,)
        case "json":
            renderers = (_order_keys, _to_json_line)
            writer = QueueWriter(channel_of(stream), partial(_render_dropped, renderers))
            _State.writers = (writer,)
        case "journal":
            renderers = (_order_keys, _to_entry)
            json_renderers = (_order_keys, _to_json_line)
            fallback = QueueWriter(channel_of(stream), partial(_render_dropped, json_renderers))
            channel = journald.JournalChannel(journal, partial(_write_fallback, fallback))
            writer = QueueWriter(channel, partial(_render_dropped, renderers))
            _State.writers = (writer, fallback)
    _State.renderers = renderers
    structlog.configure(
        processors=[
            _filter_level,
            structlog.contextvars.merge_contextvars,
            _limit_repeats,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            _render_exception,
            _add_time,
            _truncate,
            redact_secrets,
            *renderers,
        ],
        wrapper_class=_SafeLogger,
        logger_factory=lambda *_: _WriterLogger(writer),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    change(level, repeat_interval)
    logging.captureWarnings(True)


def close() -> None:
    """Write the backlog while its reader makes progress, then close the output.

    Later lines are dropped. Runs at the exit of the process.
    """
    for writer in _State.writers:
        writer.flush(EXIT_TIMEOUT)
        writer.close()
    _State.writers = ()


def log_crashes() -> None:
    """Log uncaught exceptions of the process and of threads, and unraisable exceptions.

    Python would print them on standard error, and would block if that is a full pipe.
    """

    def crashed(_kind: type[BaseException], error: BaseException, _trace: object) -> None:
        structlog.get_logger().error("listener.crashed", exc_info=error)

    def thread_crashed(args: threading.ExceptHookArgs) -> None:
        name = None if args.thread is None else args.thread.name
        structlog.get_logger().error("python.thread_crashed", thread=name, exc_info=args.exc_value)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        where = represent(args.object)
        structlog.get_logger().error("python.unraisable", where=where, exc_info=args.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = crashed, thread_crashed, unraisable


def change(level: Level, repeat_interval: float) -> None:
    """Change the level and the interval of repeated failures for all existing loggers.

    The level does not apply to the audit.
    """
    _State.limiter.window = repeat_interval
    _State.level = _LEVELS[level]
    logging.getLogger().setLevel(_LEVELS[level])
    for library in ("httpx", "httpcore", "hypercorn", "msal", "spnego"):
        logging.getLogger(library).setLevel(max(_LEVELS[level], logging.WARNING))


def watch(callback: Callable[[str, Mapping[str, Any]], None] | None) -> None:
    """Call back for every log line of the main thread, at any level. None removes the callback."""
    _State.watch = callback


def tell_repeated(*, everything: bool = False) -> None:
    """Log the summaries of repeated failures whose window has ended; with `everything`, of all.

    Must be called every few seconds, and with `everything` at the end.
    """
    for method, line, count, seconds in _State.limiter.summaries(_State.clock(), everything=everything):
        fields = {key: value for key, value in line.items() if key not in ("event", "exc_info")}
        fields |= {"repeated": count, "within": round(seconds, 1)}
        structlog.get_logger().log(_LEVELS[method], line["event"], **fields)


@contextmanager
def open_audit(path: Path | None) -> Iterator[Any]:
    """Open the audit logger. It appends lines of JSON to the file; without a path, it is the common log.

    Raises ConfigError if the file cannot be opened. A logger call raises OSError if its line cannot be written.
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
                redact_secrets,
                _order_keys,
                _to_json,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        )


def _detect_format(stream: TextIO) -> Literal["console", "json", "journal"]:
    if journald.is_journal(stream, os.environ):
        return "journal"
    return "console" if stream.isatty() else "json"


def _filter_level(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    # The callback belongs to the event loop and must not run in other threads.
    if _State.watch is not None and threading.current_thread() is threading.main_thread():
        _State.watch(method, redact_secrets(None, method, {**event}))
    minimum = _State.audit_level if event["event"] == AUDIT else _State.level
    if _LEVELS[method] < minimum:
        raise structlog.DropEvent
    return event


def _limit_repeats(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if "repeated" not in event and not _State.limiter.allows(method, event, _State.clock()):
        raise structlog.DropEvent
    return event


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["time"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _order_keys(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    head = {key: event.pop(key) for key in ("time", "level", "event") if key in event}
    return head | dict(event)


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    try:
        return printable_json(_ENCODER.encode(event))
    except (UnicodeEncodeError, OverflowError):  # a lone surrogate, a huge number
        return json.dumps(event, default=represent).encode()


def _to_json_line(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    return _to_json(logger, method, event) + b"\n"


def _to_line(_logger: WrappedLogger, _method: str, text: Any) -> bytes:
    return f"{text}\n".encode("utf-8", "backslashreplace")


def _to_entry(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> tuple[tuple[journald.Entry], dict[str, Any]]:
    return (journald.Entry(event, journald.encode(event)),), {}


def _write_fallback(fallback: QueueWriter[bytes], line: Mapping[str, Any]) -> bool:
    """Write a line that the journal did not accept to standard error. Return whether it was accepted."""
    fallback.write(_to_json_line(None, "", dict(line)))
    return fallback.take_dropped() == 0


def _render_dropped(renderers: tuple[Processor, ...], count: int) -> Any:
    """Return the rendered line that reports the number of dropped lines."""
    return _LineRenderer(renderers).warning("log.dropped", count=count)


class _LineRenderer:
    """Renders lines of plain values with the last processors only. Returns what a QueueWriter accepts."""

    def __init__(self, renderers: tuple[Processor, ...]) -> None:
        self._renderers = renderers

    # Named like a logger method, so that tests find the name of the event.
    def warning(self, name: str, **fields: Any) -> Any:
        return self.render("warning", name, fields)

    def render(self, level: str, name: str, fields: Mapping[str, Any]) -> Any:
        line: Any = _add_time(None, level, {"event": name, "level": level, **fields})
        for process in self._renderers:
            line = process(None, level, line)
        return line[0][0] if isinstance(line, tuple) and isinstance(line[0], tuple) else line


def _console_renderer(stream: TextIO) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty() and "NO_COLOR" not in os.environ,
        timestamp_key="time",
        pad_event_to=24,
        exception_formatter=structlog.dev.plain_traceback,
    )


def _render_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    raised = event.pop("exc_info", None)
    if isinstance(raised, tuple):
        raised = raised[1]
    elif raised is not None and not isinstance(raised, BaseException):
        raised = sys.exc_info()[1] if raised else None
    if raised is not None:
        event["exception"] = format_traceback(raised).removesuffix("\n")
    return event


def _truncate(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Limit the length of texts and the size of tables. Those of servers, plugins and programs can be huge."""
    return {
        _truncated(key): shortened_inside(value, LONGEST_TRACEBACK + 100)
        if key in ("exception", "stack") and isinstance(value, str)
        else _truncated(value)
        for key, value in event.items()
    }


def _truncated(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return shortened(value, LONGEST_REASON)
    if isinstance(value, bytes | bytearray):
        return shortened(value.decode("utf-8", "replace"), LONGEST_REASON)
    if isinstance(value, BaseException):
        return describe(value)
    if isinstance(value, Mapping):
        if depth >= MAX_DEPTH:
            return f"({len(value)} entries left out)"
        items = islice(value.items(), MAX_ENTRIES)
        return {_key(key): _truncated(item, depth + 1) for key, item in items} | _left_out(len(value))
    if isinstance(value, list | tuple | set | frozenset):
        if depth >= MAX_DEPTH:
            return f"({len(value)} entries left out)"
        entries = [_truncated(item, depth + 1) for item in islice(value, MAX_ENTRIES)]
        if len(value) > MAX_ENTRIES:
            entries.append(f"… ({len(value) - MAX_ENTRIES} entries left out)")
        return tuple(entries) if isinstance(value, tuple) else entries
    return value


def _key(key: Any) -> Any:
    return _truncated(key) if isinstance(key, str | bytes) else key


def _left_out(entries: int) -> dict[str, str]:
    return {} if entries <= MAX_ENTRIES else {"…": f"({entries - MAX_ENTRIES} entries left out)"}


def _printable_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, so that external text cannot move the cursor or change the colors of a terminal."""
    return {
        printable(str(key)): printable(_to_text(value), multiline=key in ("exception", "stack"))
        for key, value in event.items()
    }


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else represent(value)


class _WriterLogger:
    """The logger that structlog wraps. It passes rendered lines to a QueueWriter."""

    def __init__(self, writer: QueueWriter[Any]) -> None:
        self._writer = writer

    def msg(self, line: Any) -> None:
        self._writer.write(line)

    log = debug = info = warning = warn = error = critical = exception = fatal = failure = err = msg


class _SafeLogger(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc]
    """A logger that never raises, whatever the values are."""

    def _proxy_to_logger(self, method_name: str, event: Any = None, *args: Any, **fields: Any) -> Any:
        try:
            return super()._proxy_to_logger(method_name, event, *args, **fields)
        except BaseException as error:  # noqa: BLE001  (a value whose methods raise, or that is nested too deeply)
            failure = describe(error, 200)
        level = "error" if method_name == "exception" else method_name
        name = shortened(event, 200) if isinstance(event, str) else represent(event)[:200]
        subject = {
            key: fields[key] for key in ("mailbox", "group", "handler") if type(fields.get(key)) is str
        }
        # Only plain strings, so that rendering this line cannot raise.
        line = _LineRenderer(_State.renderers).render(level, name, {**subject, "unloggable": failure})
        self._logger.msg(line)
        return None


class _ToStructlog(logging.Handler):
    """Passes records of the standard library's loggers, and Python warnings, to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        try:
            text = record.getMessage()
        except Exception as failure:  # noqa: BLE001  (its arguments do not fit, or one cannot be shown)
            text = f"{represent(record.msg)} ({describe(failure)})"
        if record.name == "py.warnings":
            log.warning("python.warning", message=text.strip())
            return
        error = record.exc_info if record.exc_info and record.exc_info[0] else None
        level = min(max(record.levelno, logging.DEBUG), logging.CRITICAL) // 10 * 10
        log.log(level, "python.log", logger=record.name, message=text, exc_info=error)


# Maximum number of entries of a table or list in a line, and maximum nesting.
MAX_ENTRIES: Final = 1000
MAX_DEPTH: Final = 8

_ENCODER = msgspec.json.Encoder(enc_hook=represent)

# This runs before Python flushes its standard streams.
atexit.register(close)
