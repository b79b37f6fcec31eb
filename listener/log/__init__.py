"""The one place that configures logging: structlog, and what the standard library's logging and warnings bring in.

A line has `time` (RFC 3339, UTC, milliseconds), `level`, `event` (a stable dotted name; docs/LOGS.md lists all)
and typed fields. On a terminal it is coloured text, in the journal of systemd a field for each value, elsewhere one
JSON object. Values under keys that name a secret are masked, and so are credentials inside texts and tracebacks.
Failures that repeat are summed up.

Logging never stops the service: no value, however it is made, makes a call of a logger raise, texts are bounded, and
lines that nobody takes are dropped and counted (listener/log/queue_writer.py).
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
from listener.log.queue_writer import LAST, QueueWriter, channel_of, print_errors
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
    "mask_secrets",
    "open_audit",
    "print_errors",
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
    repeats = RateLimiter()
    clock: Callable[[], float] = time.monotonic
    outlets: tuple[QueueWriter[Any], ...] = ()
    end: tuple[Processor, ...] = ()
    watch: Callable[[str, Mapping[str, Any]], None] | None = None


def configure(
    level: Level = "info",
    format: Format = "auto",  # noqa: A002  (the configuration's own word)
    stream: TextIO | None = None,
    *,
    audit: bool = True,
    repeat_interval: float = WINDOW,
    journal: str = journald.SOCKET,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send all logging to `stream` (standard error if None), or to the journal's socket. May be called again.

    Without `audit`, the audit counts as other lines do: for commands whose standard error nobody keeps.

    Lines of other libraries (httpx and httpcore from warning on, all others from `level` on) come as `python.log`,
    warnings as `python.warning`. Failures that repeat are told once in `repeat_interval` seconds
    of `clock`.
    """
    stream = sys.stderr if stream is None else stream
    if format == "auto":
        format = _fitting(stream)  # noqa: A001
    _State.repeats, _State.clock = RateLimiter(repeat_interval), clock
    _State.audit = logging.INFO if audit else _LEVELS[level]
    close()
    end: tuple[Processor, ...]
    outlet: QueueWriter[Any]
    match format:
        case "console":
            end = (_printable_values, _renderer(stream), _to_line)
            outlet = QueueWriter(channel_of(stream), partial(_report_drops, end))
            _State.outlets = (outlet,)
        case "json":
            end = (_first_things_first, _to_json_line)
            outlet = QueueWriter(channel_of(stream), partial(_report_drops, end))
            _State.outlets = (outlet,)
        case "journal":
            end = (_first_things_first, _to_entry)
            plain = (_first_things_first, _to_json_line)
            beside = QueueWriter(channel_of(stream), partial(_report_drops, plain))
            channel = journald.JournalChannel(journal, partial(_write_beside, beside))
            outlet = QueueWriter(channel, partial(_report_drops, end))
            _State.outlets = (outlet, beside)
    _State.end = end
    structlog.configure(
        processors=[
            _drop_the_lesser,
            structlog.contextvars.merge_contextvars,
            _sum_up,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            _render_exception,
            _add_time,
            _bound,
            redact_secrets,
            *end,
        ],
        wrapper_class=_Unfailing,
        logger_factory=lambda *_: _Writer(outlet),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    change(level, repeat_interval)
    logging.captureWarnings(True)


def close() -> None:
    """Write what has not been written yet, as long as somebody reads it, and give up the outlet.

    Lines that are logged later are dropped. The end of the process calls it.
    """
    for outlet in _State.outlets:
        outlet.flush(LAST)
        outlet.close()
    _State.outlets = ()


def log_crashes() -> None:
    """Have the log tell what Python would print on standard error, where a reader that has gone could hold it up: the
    exception that ends the process, that ends a thread, or that was raised where nobody can catch it."""

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
    """The least that is logged from now on, by every logger that there is, and how long failures are summed up.

    The audit is logged in any case.
    """
    _State.repeats.window = repeat_interval
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
                redact_secrets,
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
    # Watchers belong to the event loop: what other threads log is not for them.
    if _State.watch is not None and threading.current_thread() is threading.main_thread():
        _State.watch(method, redact_secrets(None, method, {**event}))
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


def _write_beside(beside: QueueWriter[bytes], line: Mapping[str, Any]) -> bool:
    """Writes a line that the journal did not take; whether it was taken here."""
    beside.write(_to_json_line(None, "", dict(line)))
    return beside.take_dropped() == 0


def _report_drops(end: tuple[Processor, ...], count: int) -> Any:
    """The line that tells how many were dropped, as the processors at the end make it."""
    return _Plain(end).warning("log.dropped", count=count)


class _Plain:
    """Makes lines of plain values, past all but the last processors, and returns what the outlet takes."""

    def __init__(self, end: tuple[Processor, ...]) -> None:
        self._end = end

    def warning(self, name: str, **fields: Any) -> Any:
        return self.make("warning", name, fields)

    def make(self, level: str, name: str, fields: Mapping[str, Any]) -> Any:
        line: Any = _add_time(None, level, {"event": name, "level": level, **fields})
        for process in self._end:
            line = process(None, level, line)
        return line[0][0] if isinstance(line, tuple) and isinstance(line[0], tuple) else line


def _renderer(stream: TextIO) -> Processor:
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


def _bound(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Texts of servers, plugins and programs may have any length, and tables of theirs any size."""
    return {
        _bounded(key): shortened_inside(value, LONGEST_TRACEBACK + 100)
        if key in ("exception", "stack") and isinstance(value, str)
        else _bounded(value)
        for key, value in event.items()
    }


def _bounded(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return shortened(value, LONGEST_REASON)
    if isinstance(value, bytes | bytearray):
        return shortened(value.decode("utf-8", "replace"), LONGEST_REASON)
    if isinstance(value, BaseException):
        return describe(value)
    if isinstance(value, Mapping):
        if depth >= DEEPEST:
            return f"({len(value)} entries left out)"
        few = islice(value.items(), MOST_ENTRIES)
        made = {_key(key): _bounded(item, depth + 1) for key, item in few}
        return made | _left_out(len(value))
    if isinstance(value, list | tuple | set | frozenset):
        if depth >= DEEPEST:
            return f"({len(value)} entries left out)"
        some = [_bounded(item, depth + 1) for item in islice(value, MOST_ENTRIES)]
        left = [f"… ({len(value) - MOST_ENTRIES} entries left out)"] if len(value) > MOST_ENTRIES else []
        return (*some, *left) if isinstance(value, tuple) else [*some, *left]
    return value


def _key(key: Any) -> Any:
    return _bounded(key) if isinstance(key, str | bytes) else key


def _left_out(entries: int) -> dict[str, str]:
    return {} if entries <= MOST_ENTRIES else {"…": f"({entries - MOST_ENTRIES} entries left out)"}


def _printable_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Nothing that a server, a plugin or a program said moves the cursor of a terminal or changes its colours."""
    return {
        printable(str(key)): printable(_shown(value), multiline=key in ("exception", "stack"))
        for key, value in event.items()
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else represent(value)


class _Writer:
    """What structlog writes to: the last processor has made the line that the outlet takes."""

    def __init__(self, outlet: QueueWriter[Any]) -> None:
        self._outlet = outlet

    def msg(self, line: Any) -> None:
        self._outlet.write(line)

    log = debug = info = warning = warn = error = critical = exception = fatal = failure = err = msg


class _Unfailing(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc]
    """A logger that does not raise, whatever it is given."""

    def _proxy_to_logger(self, method_name: str, event: Any = None, *args: Any, **fields: Any) -> Any:
        try:
            return super()._proxy_to_logger(method_name, event, *args, **fields)
        except BaseException as error:  # noqa: BLE001  (a value whose methods raise, or that is nested too deeply)
            failure = describe(error, 200)
        level = "error" if method_name == "exception" else method_name
        name = shortened(event, 200) if isinstance(event, str) else represent(event)[:200]
        about = {key: fields[key] for key in ("mailbox", "group", "handler") if type(fields.get(key)) is str}
        # Plain values only: nothing in this line can raise.
        self._logger.msg(_Plain(_State.end).make(level, name, {**about, "unloggable": failure}))
        return None


class _ToStructlog(logging.Handler):
    """Hands the records of the standard library's loggers on, and of warnings."""

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


# Entries of a table or a list in a line, and how deep they may be nested.
MOST_ENTRIES: Final = 1000
DEEPEST: Final = 8

_ENCODER = msgspec.json.Encoder(enc_hook=represent)

# Before Python's own streams are flushed.
atexit.register(close)
