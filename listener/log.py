"""The one place that configures logging: structlog, and what the standard library's logging and warnings bring in.

A line has `time` (RFC 3339, UTC, milliseconds), `level`, `event` (a stable dotted name; docs/LOGS.md lists all)
and typed fields. On a terminal it is coloured text, elsewhere one JSON object. Values under keys that name a
secret are masked, and so are credentials inside texts and tracebacks.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK: Final = "***"
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SECRET_KEY = re.compile(
    r"passw|secret|token|authori[sz]ation|cookie|credential|api_?key|private_?key", re.IGNORECASE
)
_SECRET_TEXT = (
    (
        re.compile(r"(authorization['\"]?\s*[:=,]\s*b?['\"]?\s*[a-z]+\s+)[^\s'\",]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (
        re.compile(r"((?:set-)?cookie['\"]?\s*[:=,]\s*b?['\"]?\s*[^\s=;'\"]+=)[^\s;'\",]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(r"(://)[^\s/@]+@"), rf"\1{MASK}@"),
)


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "console", "json"] = "auto",  # noqa: A002  (the configuration's own word)
    stream: TextIO | None = None,
) -> None:
    """Send all logging to `stream` (standard error if None). May be called again to change any of the three.

    Lines of other libraries (httpx and httpcore from warning on, all others from `level` on) come as `python.log`,
    warnings as `python.warning`.
    """
    stream = sys.stderr if stream is None else stream
    console = format == "console" or (format == "auto" and stream.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _add_time,
            mask_secrets,
            *(_console_end(stream) if console else (_first_things_first, _to_json)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=(
            structlog.PrintLoggerFactory(stream) if console else structlog.BytesLoggerFactory(stream.buffer)
        ),
        cache_logger_on_first_use=False,  # a cached logger would keep the level of its first use
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(_LEVELS[level])
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(max(_LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: no password, token, cookie or Authorization header leaves, however deep it lies."""
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: object, value: object) -> object:
    if isinstance(value, bool | int | float | None):
        return value
    if _SECRET_KEY.search(_text(key)):
        return MASK
    if isinstance(value, str | bytes | BaseException):
        value = repr(value) if isinstance(value, BaseException) else _text(value)
        for pattern, replacement in _SECRET_TEXT:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {_text(name): _masked(name, item) for name, item in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
        return [_masked(None, value[0]), _masked(value[0], value[1])]  # one of a list of headers
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(None, item) for item in value]
    return value


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


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
