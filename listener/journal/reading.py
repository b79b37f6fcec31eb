"""One handler's way through the journal: from memory while it keeps up, else from the disk."""

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
from listener.journal.store import Standing, Write
from listener.journal.writer import Writer

log = structlog.get_logger()

_FETCH: Final = 1024


class Source(Protocol):
    """Where entries come from."""

    @property
    def writer(self) -> Writer: ...
    @property
    def now(self) -> Callable[[], float]: ...

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function makes of the reading connection and these arguments."""


class SqliteReader:
    """See listener.journal.Reader. Made by SqliteJournal.reader()."""

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
        self._again = deque(progress.unfinished)  # what was in hand when we last stopped
        self._fetched = progress.upto
        self._ahead: deque[Entry] = deque()

    @property
    def unfinished(self) -> int:
        return len(self._progress)

    @property
    def lag(self) -> int:
        return len(self._progress) + max(0, self._source.writer.tail.end - self._progress.upto)

    async def read(self, limit: int) -> list[Entry]:
        await trio.lowlevel.checkpoint()
        if not self._ahead:
            if self._again:
                await self._fetch_again()
            else:
                await self._fetch(limit)
        if not self._ahead:
            return []
        taken = [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
        upto = taken[-1].position if self._ahead else max(self._fetched, taken[-1].position)
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

    def standing(self) -> Standing:
        progress = self._progress
        return Standing(self.handler, progress.cursor, progress.upto, progress.pack())

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
            note_damage(damaged, self.handler)
        self._keep_wanted(entries)
        if not self._ahead:
            self._pass_over()

    async def _fetch_again(self) -> None:
        wanted = frozenset(self._again)
        damaged: list[records.Damage] = []
        entries, reached = await self._source.read(
            records.find_again, self.handler, wanted, self._again[0], damaged
        )
        note_damage(damaged, self.handler)
        looked_for = set[int]()
        while self._again and (reached is None or self._again[0] <= reached):
            looked_for.add(self._again.popleft())
        self._keep_wanted(entries)
        if missing := looked_for - {entry.position for entry in entries}:
            log.error("journal.events_missing", handler=self.handler, first=min(missing), count=len(missing))
        if done := looked_for - {entry.position for entry in self._ahead}:
            self.acknowledge(done)

    def _keep_wanted(self, entries: list[Entry]) -> None:
        wants = self._wants
        self._ahead.extend(entries if wants is None else [entry for entry in entries if wants(entry.event)])

    def _pass_over(self) -> None:
        """Nothing of that was for this handler: let the cursor move, so that retention can."""
        self._progress.hand_out((), self._fetched)
        self._source.writer.note_change(self)


def note_damage(damaged: Iterable[records.Damage], handler: str | None) -> None:
    """Tells of events that could not be read, and are passed over."""
    for each in damaged:
        positions = {"first": each.first, "last": each.last, "count": each.events}
        log.error("journal.events_unreadable", handler=handler, **positions)
