"""One handler's reader of the journal: from memory while the handler keeps up, otherwise from the disk."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import structlog
import trio

from listener.event import MailboxEvent
from listener.journal import Entry, records
from listener.journal.progress import Progress
from listener.journal.store import OffsetRow, Write
from listener.journal.writer import Writer

log = structlog.get_logger()

_FETCH: Final = 1024


class Source(Protocol):
    """The parts of the journal that a reader uses."""

    @property
    def writer(self) -> Writer: ...
    @property
    def now(self) -> Callable[[], float]: ...

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function with the reading connection and these arguments. Return its result."""


class SqliteReader:
    """See listener.journal.Reader. Created by SqliteJournal.reader()."""

    def __init__(
        self,
        source: Source,
        handler: str,
        wants: Callable[[MailboxEvent], bool] | None,
        progress: Progress,
    ) -> None:
        self.handler = handler
        self._source = source
        self._wants = wants
        self._progress = progress
        self._unfinished = deque(progress.unfinished)  # in progress when the previous reader was closed
        self._fetched = progress.upto
        self._buffer: deque[Entry] = deque()

    @property
    def unfinished(self) -> int:
        return len(self._progress)

    @property
    def lag(self) -> int:
        return len(self._progress) + max(0, self._source.writer.tail.end - self._progress.upto)

    async def read(self, limit: int) -> list[Entry]:
        await trio.lowlevel.checkpoint()
        if not self._buffer:
            if self._unfinished:
                await self._fetch_unfinished()
            else:
                await self._fetch(limit)
        if not self._buffer:
            return []
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        upto = taken[-1].position if self._buffer else max(self._fetched, taken[-1].position)
        if taken[-1].position > self._progress.upto:
            self._progress.hand_out([entry.position for entry in taken], upto)
        return taken

    def acknowledge(self, positions: Iterable[int]) -> None:
        self._progress.finish(positions)
        self._source.writer.note_change(self)

    async def dead_letter(
        self, entries: Sequence[Entry], *, reason: str, traceback: str = "", attempts: int = 1
    ) -> None:
        now, name = self._source.now(), self.handler

        def write(connection: sqlite3.Connection) -> None:
            records.write_dead_letters(connection, name, entries, reason, traceback, attempts, now)

        await self._source.writer.write(Write(work=write))
        self.acknowledge([entry.position for entry in entries])

    def offset(self) -> OffsetRow:
        progress = self._progress
        return OffsetRow(self.handler, progress.cursor, progress.upto, progress.pack())

    async def _fetch(self, limit: int) -> None:
        tail, after = self._source.writer.tail, self._fetched
        while after >= (end := tail.end):
            await self._source.writer.arrivals.park()
        entries = tail.after(after, min(max(limit, 1), _FETCH))
        if entries is not None:
            self._fetched = entries[-1].position
        else:
            damaged: list[records.Damage] = []
            entries, self._fetched = await self._source.read(
                records.read_events, self.handler, after, min(max(limit, 1), _FETCH), end, damaged
            )
            log_damage(damaged, self.handler)
        self._buffer_wanted(entries)
        if not self._buffer:
            self._skip_fetched()

    async def _fetch_unfinished(self) -> None:
        wanted = frozenset(self._unfinished)
        damaged: list[records.Damage] = []
        entries, reached = await self._source.read(
            records.read_unfinished, self.handler, wanted, self._unfinished[0], damaged
        )
        log_damage(damaged, self.handler)
        looked_for = set[int]()
        while self._unfinished and (reached is None or self._unfinished[0] <= reached):
            looked_for.add(self._unfinished.popleft())
        self._buffer_wanted(entries)
        if missing := looked_for - {entry.position for entry in entries}:
            log.error("journal.events_missing", handler=self.handler, first=min(missing), count=len(missing))
        if done := looked_for - {entry.position for entry in self._buffer}:
            self.acknowledge(done)

    def _buffer_wanted(self, entries: list[Entry]) -> None:
        wants = self._wants
        self._buffer.extend(entries if wants is None else [entry for entry in entries if wants(entry.event)])

    def _skip_fetched(self) -> None:
        """Move the offset past events that the filter excluded, so that retention can delete them."""
        self._progress.hand_out((), self._fetched)
        self._source.writer.note_change(self)


def log_damage(damaged: Iterable[records.Damage], handler: str | None) -> None:
    """Log events that cannot be read and are skipped."""
    for each in damaged:
        positions = {"first": each.first, "last": each.last, "count": each.events}
        log.error("journal.events_unreadable", handler=handler, **positions)
