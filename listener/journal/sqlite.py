"""The journal on SQLite: its public interface. writer.py writes, reading.py reads for one handler.

A cancelled task ends only when its call in the thread has ended, so that two threads never share a connection.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from listener.event import MailboxEvent
from listener.journal import (
    Change,
    DeadLetter,
    Figures,
    JournalDamagedError,
    JournalError,
    Retention,
    records,
    retention,
)
from listener.journal.lock import lock_directory
from listener.journal.progress import Progress
from listener.journal.reading import SqliteReader, log_damage
from listener.journal.schema import (
    FAILURES,
    FILE_NAME,
    RESCUE,
    as_config_error,
    connect,
    migrate,
    open_database,
    unusable,
)
from listener.journal.store import DiskError, Store, Write, classify
from listener.journal.tail import Tail
from listener.journal.writer import RETRY, RunSync, Writer

log = structlog.get_logger()


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function without a thread: a RunSync for the journal in memory, and for tests with a virtual clock."""
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
    """Open the journal of a state directory, and create both if necessary. On exit, write everything and close.

    With None, the journal is in memory only and ends with the context. `memory` is the number of newest events to
    cache for handlers that keep up. Raises ConfigError if another process uses the directory, or if the database
    cannot be opened. If the database proves to be damaged later, JournalError cancels the context.
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
            stack.enter_context(lock_directory(directory))
            writing = await run_sync(open_database, directory)
            stack.callback(writing.close)
            try:
                await run_sync(_repair, writing, now())
                reading = connect(path)
                stack.callback(reading.close)
                reading.execute("PRAGMA query_only = TRUE")
                records.end(reading)
            except FAILURES as error:
                raise as_config_error(path, error) from error
            except JournalDamagedError as error:
                raise unusable(path, f"is damaged: {error}", RESCUE) from error
        store = Store(writing, path, keep)
        stack.callback(store.close)
        journal = SqliteJournal(store, reading, keep, memory, now, run_sync)
        log.info("journal.opened", path=str(path), end=journal.figures.end, size=journal.figures.size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.writer.run)
            try:
                yield journal
            finally:
                journal.writer.close()


class SqliteJournal:
    """See listener.journal.Journal. Created by open_journal()."""

    def __init__(
        self,
        store: Store,
        reading: sqlite3.Connection,
        keep: Retention,
        memory: int,
        now: Callable[[], float],
        run_sync: RunSync,
    ) -> None:
        self.now = now
        self.writer = Writer(
            store, keep, Tail(memory, records.end(reading)), retention.used(reading), now, run_sync
        )
        self._store = store
        self._reading = reading
        self._limit = keep.size
        self._run_sync = run_sync
        self._read_lock = trio.Lock()
        self._readers: dict[str, SqliteReader] = {}

    # --- public interface

    @property
    def figures(self) -> Figures:
        return Figures(
            end=self.writer.tail.end,
            size=self.writer.used,
            limit=self._limit,
            full=self.writer.full,
            write_error=self.writer.write_error,
            waiting=self.writer.waiting,
            lag={name: reader.lag for name, reader in self._readers.items()},
        )

    @property
    def idle(self) -> float:
        return self.writer.idle

    async def append(self, events: Sequence[MailboxEvent], changes: Sequence[Change] = ()) -> None:
        await self.writer.write(Write(tuple(events), tuple(changes)))

    async def reader(self, handler: str, wants: Callable[[MailboxEvent], bool] | None = None) -> SqliteReader:
        if handler in self._readers:
            raise JournalError(f'handler "{handler}" already has a reader')
        now = self.now()

        def find(connection: sqlite3.Connection) -> tuple[int, bytes]:
            records.add_handler(connection, handler, now)
            connection.execute("UPDATE handlers SET seen = ? WHERE name = ?", (now, handler))
            row: tuple[int, bytes] = connection.execute(
                "SELECT upto, unfinished FROM handlers WHERE name = ?", (handler,)
            ).fetchone()
            return row

        upto, unfinished = await self.writer.write(Write(work=find))
        try:
            progress = Progress.unpack(upto, unfinished)
        except records.UNREADABLE as error:
            what = f'the offset of handler "{handler}" cannot be read: {error}'
            raise JournalDamagedError(f"{self._store.file} is damaged: {what} ({RESCUE})") from error
        reader = SqliteReader(self, handler, wants, progress)
        self._readers[handler] = self.writer.readers[handler] = reader
        return reader

    async def release(self, handler: str) -> None:
        await trio.lowlevel.checkpoint()
        if (reader := self._readers.pop(handler, None)) is not None:
            del self.writer.readers[handler]
            self.writer.note_change(reader, at_once=True)

    async def load(self, namespace: str, prefix: str = "") -> dict[str, bytes]:
        def find(connection: sqlite3.Connection) -> dict[str, bytes]:
            rows = connection.execute(
                "SELECT key, value FROM state WHERE namespace = ? AND key >= ? AND key < ? ORDER BY key",
                (namespace, prefix, prefix + "\U0010ffff"),
            )
            return dict(rows.fetchall())

        found: dict[str, bytes] = await self.read(find)
        for key in [key for key, value in found.items() if type(value) is not bytes]:
            log.warning("journal.state_unreadable", namespace=namespace, key=key)
            del found[key]
        return found

    async def forget(self, namespace: str, others: Collection[str], before: float) -> list[str]:
        old: list[str] = await self.read(records.owners, namespace, before)
        return [
            owner
            for owner in old
            if owner not in others
            and await self.writer.write(Write(work=partial(_forget, namespace, owner, before)))
        ]

    def recent(self, since: float, most: int) -> AsyncGenerator[Sequence[MailboxEvent], None]:
        return self._recent(since, most, self.writer.tail.end)

    async def _recent(
        self, since: float, most: int, until: int
    ) -> AsyncGenerator[Sequence[MailboxEvent], None]:
        position = await self.read(records.find_recent, since, most)
        while position < until:
            damaged: list[records.Damage] = []
            events, position = await self.read(records.read_recent, position, until, damaged)
            log_damage(damaged, None)
            if events:
                yield events

    async def dead_letters(
        self, handler: str | None = None, *, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        found: list[DeadLetter] = await self.read(records.dead_letters, handler, after, limit)
        return found

    async def dead_letter(self, number: int) -> DeadLetter | None:
        found: DeadLetter | None = await self.read(records.dead_letter, number)
        return found

    async def requeue(self, numbers: Sequence[int]) -> int:
        now = self.now()
        count: int = await self.writer.write(Write(work=lambda c: records.requeue(c, numbers, now)))
        return count

    async def discard(self, numbers: Sequence[int]) -> int:
        count: int = await self.writer.write(Write(work=lambda c: records.discard(c, numbers)))
        return count

    async def replay(self, handler: str, since: float, mailbox: str | None = None) -> int:
        mailbox = None if mailbox is None else mailbox.casefold()
        now = self.now()
        chunks = await self.read(records.find_chunks, handler, since, mailbox)
        work = Write(work=lambda c: records.replay(c, handler, chunks, mailbox, now))
        count: int = await self.writer.write(work)
        return count

    async def flush(self) -> None:
        await self.writer.flush()

    # --- reading

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function with the reading connection and these arguments. Retry while the disk fails.

        Raises JournalDamagedError, or what the function raises.
        """
        failures = 0
        while True:
            async with self._read_lock:
                try:
                    return await self._run_sync(function, self._reading, *args)
                except FAILURES as error:
                    kind = classify(error, self._store.file)
                    if not isinstance(kind, DiskError):
                        raise kind from error
            failures += 1
            if failures == 1:
                log.error("journal.unreadable", path=str(self._store.file), reason=str(kind))
            await trio.sleep(RETRY.longest(failures))


def _forget(namespace: str, owner: str, before: float, connection: sqlite3.Connection) -> bool:
    return records.forget_owner(connection, namespace, owner, before)


def _repair(connection: sqlite3.Connection, now: float) -> None:
    """Repair damaged offsets of handlers, and log them. Raises JournalDamagedError and sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        repaired = records.repair_progress(connection, now)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    for each in repaired:
        log.warning("journal.progress_unreadable", handler=each.handler, position=each.position)
