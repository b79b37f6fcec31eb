"""Redaction of passwords, tokens, cookies and Authorization headers in log lines (pure)."""

import re
from collections.abc import Mapping
from typing import Final

from structlog.typing import EventDict, WrappedLogger

from listener.text import represent

MASK: Final = "***"
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


def redact_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask passwords, tokens, cookies and Authorization headers at any depth. This is a structlog processor."""
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: object, value: object) -> object:
    if isinstance(value, bool | int | float | None):
        return value
    if _SECRET_KEY.search(_text(key)):
        return MASK
    if isinstance(value, str | bytes | BaseException):
        value = represent(value) if isinstance(value, BaseException) else _text(value)
        for pattern, replacement in _SECRET_TEXT:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {_text(name): _masked(name, item) for name, item in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
        return [_masked(None, value[0]), _masked(value[0], value[1])]  # a header in a list of headers
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(None, item) for item in value]
    return value


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
