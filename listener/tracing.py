"""Tracing of single mailboxes in real time, for `ews-listener watch`. It costs almost nothing while unused.

    if tracing.on:
        tracing.emit(mailbox, "event", type=event.type)

    async for line in tracing.watch(mailbox):    # JSON, one object per line
        ...

A line has `time`, `kind` and the fields of its kind (docs/CLI.md). The daemon never waits for a watcher. A watcher
that reads too slowly loses lines and gets a line with their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import msgspec
import trio

from listener.ews.soap import acting_as, owner_of_folders

# Maximum number of queued lines per watcher.
MAX_LINES = 1000

# Keys of a trace line that a field of a log line must not replace.
RESERVED = ("time", "kind", "level", "event")


class Home(NamedTuple):
    """The group of a mailbox and the group's anchor. `own`: it is the account's own mailbox."""

    group: str
    anchor: str
    own: bool = False


class _Watcher:
    def __init__(self) -> None:
        self.lines: deque[bytes] = deque()
        self.lost = 0
        self.changed = trio.Event()

    def put(self, line: bytes) -> None:
        if len(self.lines) < MAX_LINES:
            self.lines.append(line)
        else:
            self.lost += 1
        self.changed.set()


class Tracing:
    """All watchers. `home` returns the Home of a mailbox, or None if it has no group now.

    `changed` is called with True when the first watcher starts, and with False when the last one ends.
    """

    def __init__(self) -> None:
        self.on = False
        self.home: Callable[[str], Home | None] = lambda _mailbox: None
        self.changed: Callable[[bool], None] = lambda _on: None
        self._watchers: dict[str, set[_Watcher]] = {}

    async def watch(self, mailbox: str) -> AsyncGenerator[bytes, None]:
        """Yield trace lines of a mailbox until the iterator is closed."""
        watcher = _Watcher()
        self._watchers.setdefault(mailbox, set()).add(watcher)
        self._update()
        try:
            yield _line("watching", {"mailbox": mailbox})
            while True:
                await watcher.changed.wait()
                watcher.changed = trio.Event()
                lines, lost = list(watcher.lines), watcher.lost
                watcher.lines.clear()
                watcher.lost = 0
                if lost:
                    lines.append(_line("lost", {"lines": lost}))
                yield b"".join(lines)
        finally:
            self._watchers[mailbox].discard(watcher)
            if not self._watchers[mailbox]:
                del self._watchers[mailbox]
            self._update()

    def emit(self, mailbox: str, kind: str, /, **fields: Any) -> None:
        """Send a line to the watchers of a mailbox."""
        if watchers := self._watchers.get(mailbox):
            line = _line(kind, fields)
            for watcher in watchers:
                watcher.put(line)

    def trace_request(self, operation: str, body: bytes, anchor: str, *, code: str, seconds: float) -> None:
        """Trace a request to the watchers of each mailbox that it is about.

        A request is about a mailbox if its body contains the address, if it opens the stream of the mailbox's group,
        or if it contains no address and the mailbox is the account's own.
        """
        text = body.decode(errors="replace").casefold()
        opens_stream = operation == "GetStreamingEvents"
        without_address = acting_as(body) is None and owner_of_folders(body) is None
        for mailbox in list(self._watchers):
            home = self.home(mailbox)
            same_group = home is not None and home.anchor == anchor
            implied = same_group and home is not None and (opens_stream or (home.own and without_address))
            if implied or f">{escape(mailbox)}<".casefold() in text:
                self.emit(mailbox, "request", operation=operation, code=code, seconds=round(seconds, 4))

    def trace_log(self, level: str, line: Mapping[str, Any]) -> None:
        """Trace a log line about a mailbox, or about its group without a mailbox."""
        subject = line.get("mailbox")
        for mailbox in list(self._watchers):
            home = self.home(mailbox) if subject is None and "group" in line else None
            if subject == mailbox or (home is not None and home.group == line["group"]):
                fields = {key: value for key, value in line.items() if key not in RESERVED}
                self.emit(mailbox, "log", level=level, event=line.get("event"), **fields)

    def _update(self) -> None:
        if self.on != bool(self._watchers):
            self.on = bool(self._watchers)
            self.changed(self.on)


def _line(kind: str, fields: Mapping[str, Any]) -> bytes:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
    return _ENCODER.encode({"time": now, "kind": kind, **fields}) + b"\n"


_ENCODER = msgspec.json.Encoder(enc_hook=repr)
