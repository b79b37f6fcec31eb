"""The journal on SQLite: one task gathers what everybody wants written and commits it, in a thread, at once.

Whoever calls while a commit is under way joins the next one: that is the group commit, without any delay of its own.
Acknowledgements go along with a commit, or make one when they have waited for LINGER seconds.

A cancelled task ends only when its call in the thread has: a connection never serves two threads.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog
import trio

from listener.backoff import Backoff
from listener.event import MailboxEvent
from listener.journal import (
    Change,
    DeadLetter,
    Entry,
    Figures,
    JournalError,
    Retention,
    records,
    retention,
)
from listener.journal.lock import locked
from listener.journal.progress import Progress
from listener.journal.schema import FILE_NAME, connect, migrate, open_database
from listener.journal.store import Refused, Standing, Store, Trouble, Write, Written, sorted_out
from listener.journal.tail import Tail

log = structlog.get_logger()

RunSync: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a function with arguments where it may block; `trio.to_thread.run_sync` is one."""

LINGER: Final = 0.05
_TICK: Final = 1.0
_SWEEP: Final = 30.0
_SWEEP_CROWDED: Final = 0.1
_SEEN: Final = 3600.0
_ABSENT_GRACE: Final = 600.0  # so long after the start no handler is taken for gone
_MOST_EVENTS: Final = 5000  # a commit
_FETCH: Final = 1024
_RETRY: Final = Backoff(first=0.1, factor=2.0, cap=10.0)


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    """A RunSync that uses no thread, for tests with a virtual clock."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@asynccontextmanager
async def open_journal(
    directory: Path | None,
    *,
    keep: Retention | None = None,
    memory: int = 20_000,
    now: Callable[[], float] = time.time,
    run_sync: RunSync | None = None,
) -> AsyncIterator[SqliteJournal]:
    """Opens the journal of a state directory, which it makes; when it is left, all is written and closed.

    With None the journal lives in memory only and ends with the context. `memory` is how many of the newest events
    are held for handlers that keep up. Raises ConfigError if the directory is in use or its database cannot be;
    JournalError cancels the context if the database turns out to be damaged later.
    """
    keep = keep or Retention()
    if run_sync is None:
        run_sync = partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(2))
    with ExitStack() as stack:
        if directory is None:
            path, run_sync = None, inline
            writing = reading = sqlite3.connect(":memory:", isolation_level=None)
            stack.callback(writing.close)
            migrate(writing)
        else:
            path = directory / FILE_NAME
            stack.enter_context(locked(directory))
            writing = await run_sync(open_database, directory)
            reading = connect(path)
            stack.callback(reading.close)
            reading.execute("PRAGMA query_only = TRUE")
        store = Store(writing, path, keep)
        stack.callback(store.close)
        journal = SqliteJournal(store, reading, keep, memory, now, run_sync)
        log.info("journal.opened", path=str(path), end=journal.figures.end, size=journal.figures.size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal._run)
            try:
                yield journal
            finally:
                journal._close()


@dataclass(eq=False, slots=True)
class _Job:
    write: Write
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: BaseException | None = None
    abandoned: bool = False


class SqliteJournal:
    """See listener.journal.Journal. Made by open_journal()."""

    def __init__(
        self,
        store: Store,
        reading: sqlite3.Connection,
        keep: Retention,
        memory: int,
        now: Callable[[], float],
        run_sync: RunSync,
    ) -> None:
        self._store = store
        self._reading = reading
        self._keep = keep
        self._now = now
        self._run_sync = run_sync
        self._one_reads = trio.Lock()
        self._tail = Tail(memory, records.end(reading))
        self._used = retention.used(reading)
        self._appends: deque[_Job] = deque()
        self._others: deque[_Job] = deque()
        self._readers: dict[str, SqliteReader] = {}
        self._changed: dict[SqliteReader, None] = {}
        self._save_at = 0.0
        self._waiting_readers = trio.lowlevel.ParkingLot()
        self._wake = trio.Event()
        self._closing = trio.Event()
        self._full = False
        self._failures = 0
        self._trouble: str | None = None
        self._trouble_since = 0.0
        # What lives in memory is nobody else's: there is no need to look whether it has grown.
        self._tick = _TICK if store.path else math.inf
        self._opened_at = self._looked_at = self._seen_at = self._turned_at = trio.current_time()
        self._sweep_at = self._opened_at + _SWEEP_CROWDED

    # what callers see

    @property
    def figures(self) -> Figures:
        return Figures(
            end=self._tail.end,
            size=self._used,
            limit=self._keep.size,
            full=self._full,
            trouble=self._trouble,
            waiting=len(self._appends),
            behind={name: reader.behind for name, reader in self._readers.items()},
        )

    @property
    def idle(self) -> float:
        return trio.current_time() - self._turned_at

    async def append(self, events: Sequence[MailboxEvent], changes: Sequence[Change] = ()) -> None:
        await self._written(Write(tuple(events), tuple(changes)))

    async def reader(self, handler: str, wants: Callable[[MailboxEvent], bool] | None = None) -> SqliteReader:
        if handler in self._readers:
            raise JournalError(f"handler {handler} reads the journal already")
        now = self._now()

        def find(connection: sqlite3.Connection) -> tuple[int, bytes]:
            records.add_handler(connection, handler, now)
            connection.execute("UPDATE handlers SET seen = ? WHERE name = ?", (now, handler))
            row: tuple[int, bytes] = connection.execute(
                "SELECT upto, unfinished FROM handlers WHERE name = ?", (handler,)
            ).fetchone()
            return row

        upto, unfinished = await self._written(Write(work=find))
        reader = SqliteReader(self, handler, wants, Progress.unpack(upto, unfinished))
        self._readers[handler] = reader
        return reader

    async def release(self, handler: str) -> None:
        if (reader := self._readers.get(handler)) is not None:
            self._note_change(reader)
            await self.flush()
            del self._readers[handler]

    async def load(self, namespace: str, prefix: str = "") -> dict[str, bytes]:
        def find(connection: sqlite3.Connection) -> dict[str, bytes]:
            rows = connection.execute(
                "SELECT key, value FROM state WHERE namespace = ? AND key >= ? AND key < ? ORDER BY key",
                (namespace, prefix, prefix + "\U0010ffff"),
            )
            return dict(rows.fetchall())

        found: dict[str, bytes] = await self._read(find)
        return found

    async def forget(self, namespace: str, others: Collection[str], before: float) -> list[str]:
        old: list[str] = await self._read(records.owners, namespace, before)
        return [
            owner
            for owner in old
            if owner not in others
            and await self._written(Write(work=partial(_forget, namespace, owner, before)))
        ]

    def recent(self, since: float, most: int) -> AsyncGenerator[Sequence[MailboxEvent], None]:
        return self._recent(since, most, self._tail.end)

    async def _recent(
        self, since: float, most: int, until: int
    ) -> AsyncGenerator[Sequence[MailboxEvent], None]:
        at = await self._read(records.find_recent, since, most)
        while at < until:
            events, at = await self._read(records.read_recent, at, until)
            if events:
                yield events

    async def dead_letters(
        self, handler: str | None = None, *, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        found: list[DeadLetter] = await self._read(records.dead_letters, handler, after, limit)
        return found

    async def dead_letter(self, number: int) -> DeadLetter | None:
        found: DeadLetter | None = await self._read(records.dead_letter, number)
        return found

    async def retry(self, numbers: Sequence[int]) -> int:
        now = self._now()
        count: int = await self._written(Write(work=lambda c: records.retry(c, numbers, now)))
        return count

    async def discard(self, numbers: Sequence[int]) -> int:
        count: int = await self._written(Write(work=lambda c: records.discard(c, numbers)))
        return count

    async def replay(self, handler: str, since: float, mailbox: str | None = None) -> int:
        mailbox = None if mailbox is None else mailbox.casefold()
        now = self._now()
        chunks = await self._read(records.find_chunks, handler, since, mailbox)
        work = Write(work=lambda c: records.replay(c, handler, chunks, mailbox, now))
        count: int = await self._written(work)
        return count

    async def flush(self) -> None:
        self._save_at = trio.current_time()
        await self._written(Write())

    # reading

    async def _read(self, function: Callable[..., Any], *args: Any) -> Any:
        failures = 0
        while True:
            async with self._one_reads:
                try:
                    return await self._run_sync(function, self._reading, *args)
                except sqlite3.Error as error:
                    kind = sorted_out(error, self._store.file)
                    if not isinstance(kind, Trouble):
                        raise kind from error
            failures += 1
            if failures == 1:
                log.error("journal.unreadable", path=str(self._store.file), reason=str(kind))
            await trio.sleep(_RETRY.longest(failures))

    # writing

    async def _written(self, write: Write) -> Any:
        if self._closing.is_set():
            raise JournalError("the journal is closed")
        job = _Job(write)
        (self._appends if write.events else self._others).append(job)
        self._wake.set()
        try:
            await job.done.wait()
        finally:
            job.abandoned = True
        if job.error is not None:
            raise job.error
        return job.result

    def _note_change(self, reader: SqliteReader) -> None:
        if not self._changed:
            self._save_at = max(self._save_at, trio.current_time() + LINGER)
            self._wake.set()
        self._changed[reader] = None

    def _close(self) -> None:
        self._closing.set()
        self._wake.set()

    async def _run(self) -> None:
        """Writes until it is closed, and what is left then; once, if the disk refuses."""
        try:
            with trio.CancelScope(shield=True):
                while not self._closing.is_set():
                    await self._pause()
                    await self._turn()
                await self._finish()
        finally:
            self._closing.set()
            for job in (*self._others, *self._appends):
                job.error = JournalError("the journal is closed")
                job.done.set()

    async def _finish(self) -> None:
        while self._others or self._changed or (self._appends and not self._full):
            self._save_at = trio.current_time()
            await self._turn()
            if self._failures:
                log.warning("journal.unwritten", handlers=[reader.handler for reader in self._changed])
                return

    async def _pause(self) -> None:
        """Waits until there is something to do, or it is time to look around."""
        if self._failures:
            with trio.move_on_after(_RETRY.longest(self._failures)):
                await self._closing.wait()
            return
        if self._others or (self._appends and not self._full):
            return
        due = min(trio.current_time() + self._tick, self._sweep_at)
        if self._changed:
            due = min(due, self._save_at)
        self._wake = trio.Event()
        with trio.move_on_at(due):
            await self._wake.wait()

    async def _turn(self) -> None:
        jobs = self._take()
        changed = list(self._changed) if trio.current_time() >= self._save_at else []
        try:
            if jobs or changed:
                await self._transact(jobs, changed)
            elif trio.current_time() >= self._looked_at + self._tick:
                self._reach(self._tail.end + 1, (), await self._run_sync(self._store.look))
            if trio.current_time() >= self._sweep_at:
                await self._sweep()
        except Trouble as trouble:
            self._appends.extendleft(job for job in reversed(jobs) if job.write.events and _waits(job))
            self._others.extendleft(job for job in reversed(jobs) if not job.write.events and _waits(job))
            self._changed |= dict.fromkeys(changed)
            self._failed(str(trouble))
        else:
            self._works()
        self._turned_at = trio.current_time()

    def _take(self) -> list[_Job]:
        jobs = [job for job in self._others if not job.abandoned]
        self._others.clear()
        events = 0
        while self._appends and not self._full and events < _MOST_EVENTS:
            job = self._appends.popleft()
            if not job.abandoned:
                jobs.append(job)
                events += len(job.write.events)
        return jobs

    async def _transact(self, jobs: list[_Job], changed: list[SqliteReader]) -> None:
        standings = [reader._standing() for reader in changed]
        for reader in changed:
            self._changed.pop(reader)
        self._save_at = trio.current_time() + LINGER
        try:
            await self._write(jobs, standings)
        except Refused:
            for job in jobs:
                try:
                    await self._write([job], standings)
                except Refused as refused:
                    job.error = refused.__cause__
                    job.done.set()

    async def _write(self, jobs: list[_Job], standings: list[Standing]) -> None:
        writes = [job.write for job in jobs]
        written: Written = await self._run_sync(self._store.transact, writes, standings, self._now())
        events = [event for write in writes for event in write.events]
        for job, result in zip(jobs, written.results, strict=True):
            job.result = result
            job.done.set()
        self._reach(written.first, events, written.end)
        self._measure(written.used)

    def _reach(self, first: int, events: Sequence[MailboxEvent], end: int) -> None:
        self._looked_at = trio.current_time()
        if end != self._tail.end:
            self._tail.extend(first, events, end)
            self._waiting_readers.unpark_all()

    async def _sweep(self) -> None:
        current = trio.current_time()
        if current >= self._seen_at + _SEEN:
            self._seen_at = current
            self._changed |= dict.fromkeys(self._readers.values())
        present = set(self._readers) if current >= self._opened_at + _ABSENT_GRACE else None
        more, forgotten, used = await self._run_sync(self._store.sweep, self._now(), present)
        for name in forgotten:
            log.warning("journal.handler_forgotten", handler=name)
        self._measure(used)
        if not more:
            crowded = used > self._keep.size * retention.HIGH_WATER
            self._sweep_at = trio.current_time() + (_SWEEP_CROWDED if crowded else _SWEEP)

    def _measure(self, used: int) -> None:
        self._used = used
        if used > self._keep.size * retention.HIGH_WATER:
            self._sweep_at = min(self._sweep_at, trio.current_time() + _SWEEP_CROWDED)
        if (full := used >= self._keep.size) == self._full:
            return
        self._full = full
        if full:
            slowest = max(self._readers.values(), key=lambda reader: reader.behind, default=None)
            log.error(
                "journal.full",
                path=str(self._store.file),
                size=used,
                limit=self._keep.size,
                slowest=slowest and slowest.handler,
                behind=slowest and slowest.behind,
            )
        else:
            log.info("journal.room", path=str(self._store.file), size=used)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._trouble is None:
            self._trouble_since = trio.current_time()
        if self._trouble != reason:
            self._trouble = reason
            path = str(self._store.file)
            log.error("journal.trouble", path=path, reason=reason, free=self._store.free())

    def _works(self) -> None:
        self._failures = 0
        if self._trouble is not None:
            self._trouble = None
            lasted = round(trio.current_time() - self._trouble_since, 1)
            log.info("journal.works_again", path=str(self._store.file), lasted=lasted)


def _forget(namespace: str, owner: str, before: float, connection: sqlite3.Connection) -> bool:
    return records.forget_owner(connection, namespace, owner, before)


def _waits(job: _Job) -> bool:
    return not job.done.is_set() and not job.abandoned


class SqliteReader:
    """See listener.journal.Reader. Made by SqliteJournal.reader()."""

    def __init__(
        self,
        journal: SqliteJournal,
        handler: str,
        wants: Callable[[MailboxEvent], bool] | None,
        progress: Progress,
    ) -> None:
        self.handler = handler
        self._journal = journal
        self._wants = wants
        self._progress = progress
        self._again = deque(progress.unfinished)  # what was in hand when we last stopped
        self._fetched = progress.upto
        self._ahead: deque[Entry] = deque()

    @property
    def unfinished(self) -> int:
        return len(self._progress)

    @property
    def behind(self) -> int:
        return len(self._progress) + max(0, self._journal._tail.end - self._progress.upto)

    async def read(self, limit: int) -> list[Entry]:
        await trio.lowlevel.checkpoint()
        while not self._ahead:
            if self._again:
                await self._fetch_again()
            else:
                await self._fetch(limit)
        taken = [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
        upto = taken[-1].position if self._ahead else max(self._fetched, taken[-1].position)
        if taken[-1].position > self._progress.upto:
            self._progress.hand_out([entry.position for entry in taken], upto)
        return taken

    def acknowledge(self, positions: Iterable[int]) -> None:
        self._progress.finish(positions)
        self._journal._note_change(self)

    async def bury(self, entry: Entry, *, reason: str, traceback: str = "", attempts: int = 1) -> None:
        now, name = self._journal._now(), self.handler

        def write(connection: sqlite3.Connection) -> None:
            records.write_dead_letter(connection, name, entry, reason, traceback, attempts, now)

        await self._journal._written(Write(work=write))
        self.acknowledge([entry.position])

    def _standing(self) -> Standing:
        progress = self._progress
        return Standing(self.handler, progress.cursor, progress.upto, progress.pack())

    async def _fetch(self, limit: int) -> None:
        journal, after = self._journal, self._fetched
        end = journal._tail.end
        if after >= end:
            await journal._waiting_readers.park()
            return
        entries = journal._tail.after(after, min(max(limit, 1), _FETCH))
        if entries is not None:
            self._fetched = entries[-1].position
        else:
            entries, self._fetched = await journal._read(
                records.read_events, self.handler, after, min(max(limit, 1), _FETCH), end
            )
        self._keep_wanted(entries)
        if not self._ahead:
            self._pass_over()

    async def _fetch_again(self) -> None:
        wanted = frozenset(self._again)
        entries, reached = await self._journal._read(records.find_again, self.handler, wanted, self._again[0])
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
        self._journal._note_change(self)
