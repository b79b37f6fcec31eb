"""Somebody looks at one mailbox: what happens with it is told as it happens. Costs next to nothing while nobody does.

    if watching.on:
        watching.tell(mailbox, "event", type=event.type)

    async for line in watching.watch(mailbox):    # JSON, one object a line
        ...

A line has `time`, `kind` and what that kind has (docs/CLI.md). Whoever reads too slowly loses lines, and is told how
many; nobody waits for a watcher.
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

# Lines that a watcher may be behind.
MOST = 1000

# Keys of a line that are its own.
TAKEN = ("time", "kind", "level", "event")


class Home(NamedTuple):
    """The group of a mailbox, and its anchor; `own` if it is the mailbox that the account has itself."""

    group: str
    anchor: str
    own: bool = False


class _Watcher:
    def __init__(self) -> None:
        self.lines: deque[bytes] = deque()
        self.lost = 0
        self.news = trio.Event()

    def put(self, line: bytes) -> None:
        if len(self.lines) < MOST:
            self.lines.append(line)
        else:
            self.lost += 1
        self.news.set()


class Tracing:
    """All who watch. `home` gives that of a mailbox; None if it has no group now."""

    def __init__(self) -> None:
        self.on = False
        self.home: Callable[[str], Home | None] = lambda _mailbox: None
        self.changed: Callable[[bool], None] = lambda _on: None
        self._watchers: dict[str, set[_Watcher]] = {}

    async def watch(self, mailbox: str) -> AsyncGenerator[bytes, None]:
        """What happens with a mailbox from now on, until the iterator is closed."""
        watcher = _Watcher()
        self._watchers.setdefault(mailbox, set()).add(watcher)
        self._note()
        try:
            yield _line("watching", {"mailbox": mailbox})
            while True:
                await watcher.news.wait()
                watcher.news = trio.Event()
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
            self._note()

    def emit(self, mailbox: str, kind: str, /, **fields: Any) -> None:
        """Something happened with a mailbox."""
        if watchers := self._watchers.get(mailbox):
            line = _line(kind, fields)
            for watcher in watchers:
                watcher.put(line)

    def trace_request(self, operation: str, body: bytes, anchor: str, *, code: str, seconds: float) -> None:
        """A request was answered: one that names the mailbox, or opens the stream of its group; or, where it is the
        account's own, names nobody."""
        text = body.decode(errors="replace").casefold()
        streams = operation == "GetStreamingEvents"
        unnamed = acting_as(body) is None and owner_of_folders(body) is None
        for mailbox in list(self._watchers):
            home = self.home(mailbox)
            meant = home is not None and home.anchor == anchor and (streams or (home.own and unnamed))
            if meant or f">{escape(mailbox)}<".casefold() in text:
                self.emit(mailbox, "request", operation=operation, code=code, seconds=round(seconds, 4))

    def trace_log(self, level: str, line: Mapping[str, Any]) -> None:
        """A line of the log: about the mailbox, or about its group alone."""
        about = line.get("mailbox")
        for mailbox in list(self._watchers):
            home = self.home(mailbox) if about is None and "group" in line else None
            if about == mailbox or (home is not None and home.group == line["group"]):
                rest = {key: value for key, value in line.items() if key not in TAKEN}
                self.emit(mailbox, "log", level=level, event=line.get("event"), **rest)

    def _note(self) -> None:
        if self.on != bool(self._watchers):
            self.on = bool(self._watchers)
            self.changed(self.on)


def _line(kind: str, fields: Mapping[str, Any]) -> bytes:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
    return _ENCODER.encode({"time": now, "kind": kind, **fields}) + b"\n"


_ENCODER = msgspec.json.Encoder(enc_hook=repr)
