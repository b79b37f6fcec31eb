"""Output to the systemd journal: one datagram per log line, with one field per value.

Source: "Native Journal Protocol", systemd.io/JOURNAL_NATIVE_PROTOCOL. A field is `NAME=value` and a newline. If the
value contains a newline, the field is the name, a newline, the length (64 bits, little-endian), the value, a newline.
An entry that is too large for a datagram is written to a sealed memory file, whose descriptor is sent instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TextIO

import msgspec

from listener.text import printable, represent

SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "ews-listener"
PREFIX: Final = "EWS_"
MAX_NAME: Final = 64
# syslog(3)
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_BUFFER: Final = 8 * 1024 * 1024
_PAUSE: Final = 0.05  # seconds between two attempts to send an entry while the journal's socket is full
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_INVALID_IN_NAME = re.compile(r"[^A-Z0-9_]")


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether the stream is connected to the journal. JOURNAL_STREAM then has its device and inode
    (systemd.exec(5))."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdecimal() and inode.isdecimal()):
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or without a file descriptor
        return False
    return (status.st_dev, status.st_ino) == (int(device), int(inode))


def encode(line: Mapping[str, Any]) -> bytes:
    """Return a log line (`event`, `level` and other values) in the format of the journal."""
    fields = {
        "MESSAGE": message(line),
        "PRIORITY": str(PRIORITIES.get(str(line.get("level")), 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    for key, value in line.items():
        if key not in ("time", "level"):  # the journal has its own fields for these
            fields[name(key)] = _text(value)
    return b"".join(_field(key, value) for key, value in fields.items())


def message(line: Mapping[str, Any]) -> str:
    """Return the readable form: the event, its values, and a traceback on the following lines."""
    values = [
        f"{key}={printable(_text(value))}"
        for key, value in line.items()
        if key not in ("time", "level", "event", "exception")
    ]
    head = " ".join([printable(str(line.get("event", ""))), *values])
    return f"{head}\n{printable(str(line['exception']), multiline=True)}" if "exception" in line else head


def name(key: str) -> str:
    """Return the field name of a key: EWS_ and the key in capital letters."""
    return (PREFIX + _INVALID_IN_NAME.sub("_", key.upper()))[:MAX_NAME]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value, enc_hook=represent).decode()


def _field(key: str, text: str) -> bytes:
    value = text.encode("utf-8", "replace")
    if b"\n" not in value:
        return b"%s=%s\n" % (key.encode(), value)
    return b"%s\n%s%s\n" % (key.encode(), struct.pack("<Q", len(value)), value)


class Entry(NamedTuple):
    """A log line, and its encoded form."""

    line: Mapping[str, Any]
    data: bytes


class JournalChannel:
    """Sends entries to the journal's socket. If the journal is not available, `fallback` gets the line and returns
    whether it could write it."""

    def __init__(self, path: str, fallback: Callable[[Mapping[str, Any]], bool]) -> None:
        self._path = path
        self._fallback = fallback
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def send(self, line: Entry) -> None:
        try:
            self._send(line.data)
        except BlockingIOError:  # the journal is slow or stopped
            raise
        except OSError:  # the journal is restarting
            if not self._fallback(line.line):
                raise

    def wait(self, seconds: float) -> None:
        # poll() on an unconnected socket does not wait for room at the receiver.
        time.sleep(min(seconds, _PAUSE))

    def size(self, line: Entry) -> int:
        return len(line.data)

    def close(self) -> None:
        self._socket.close()

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.sendto(entry, socket.MSG_DONTWAIT, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(entry)

    def _send_file(self, entry: bytes) -> None:
        descriptor = os.memfd_create(IDENTIFIER, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(descriptor, "wb") as file:
            file.write(entry)
            file.flush()
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
            self._socket.sendmsg([], [rights], socket.MSG_DONTWAIT, self._path)
