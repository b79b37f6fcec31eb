"""Make text from servers, plugins and child processes bounded, storable and safe to print on a terminal (pure).

Such text can have any size and content: control sequences, lone surrogates, or an exception whose `__str__` raises.
Functions that take an exception never raise because of it.
"""

from __future__ import annotations

import re
import traceback
from typing import Final

LONGEST_REASON: Final = 4096
"""Most characters of a reason or message in the log and in a dead letter."""
LONGEST_TRACEBACK: Final = 16384
"""Most characters of a traceback in the log and in a dead letter."""

# C0 (without tab and newline), DEL, C1, bidirectional marks and overrides, line separators, surrogates.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, *, multiline: bool = False) -> str:
    """Return the text with every character escaped that a terminal would interpret, as `\\x1b` or `\\u202e`.

    A newline is escaped too unless `multiline` is set: foreign text must not be able to start a new line.
    """
    text = _CONTROL.sub(_escaped, text)
    return text if multiline else text.replace("\n", "\\n")


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def shortened(text: str, most: int) -> str:
    """Return the first `most` characters of the text, followed by the number of omitted characters."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text) - most} characters left out)"


def shortened_inside(text: str, most: int) -> str:
    """Return the start and the end of the text, `most` characters in all, and the number of omitted characters.

    For tracebacks: the end has the exception, the start has the origin of the call.
    """
    if len(text) <= most:
        return text
    head = most // 4
    return f"{text[:head]}\n… ({len(text) - most} characters left out)\n{text[-(most - head) :]}"


def encodable(text: str) -> str:
    """Return the text with lone surrogates escaped, so that UTF-8 can encode it."""
    return text.encode("utf-8", "backslashreplace").decode()


def represent(value: object) -> str:
    """Return `repr(value)`, or a placeholder if that raises."""
    try:
        return repr(value)
    except BaseException as error:  # noqa: BLE001  (a plugin's code; signals do not raise in the daemon)
        return f"<{type(value).__name__} whose repr() raises {type(error).__name__}>"


def describe(error: BaseException, most: int = LONGEST_REASON) -> str:
    """Return `ValueError: text`. A group of exactly one exception is replaced by that exception."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    text, name = message(error, most), type(error).__name__
    return shortened(encodable(f"{name}: {text}" if text else name), most)


def message(error: BaseException, most: int = LONGEST_REASON) -> str:
    """Return `str(error)`, or a placeholder if that raises."""
    try:
        text = str(error)
    except BaseException as failure:  # noqa: BLE001
        text = f"<str() raises {type(failure).__name__}>"
    return shortened(encodable(text), most)


def format_traceback(error: BaseException, most: int = LONGEST_TRACEBACK) -> str:
    """Return the traceback as text, or only the exception's type and message if it cannot be rendered."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as failure:  # noqa: BLE001  (attributes of a foreign exception may raise)
        text = f"{describe(error)} (the traceback cannot be rendered: {type(failure).__name__})\n"
    return shortened_inside(encodable(text), most)


def printable_json(line: bytes) -> bytes:
    """Return UTF-8 JSON with every character escaped that a terminal would interpret.

    The JSON value stays the same: JSON itself escapes only C0, and these characters can occur only in strings.
    """
    if line.isascii() and b"\x7f" not in line:
        return line
    text = line.decode("utf-8", "replace")
    return _CONTROL.sub(
        lambda found: f"\\u{ord(found[0]):04x}" if found[0] >= "\x7f" else found[0], text
    ).encode()
