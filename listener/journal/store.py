"""The writing connection: many callers' writes in one transaction. Used by one thread at a time.

There are three kinds of failures. A DiskError may be temporary, so the writer retries everything. A
JournalDamagedError is permanent. Refused is the fault of one write: its caller gets the error, and the others are
written.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from listener.event import MailboxEvent
from listener.journal import Change, JournalDamagedError, JournalError, Put, Retention, records, retention
from listener.journal.schema import FAILURES, FILE_NAME, RESCUE, connect

_TEMPORARY: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
# More than what SQLite itself calls corrupt: a missing table or column, a violated constraint, a row number that is
# not a number. In an intact database none of the statements here can cause these.
_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_INTERNAL,
    }
)


# One statement instead of three: each releases the interpreter lock, and waits for it again while the loop is busy.
_MEASURE: Final = """SELECT coalesce((SELECT max(last) FROM chunks), 0), page_count - freelist_count
    FROM pragma_page_count, pragma_freelist_count"""
_SAVE_OFFSET: Final = "UPDATE handlers SET cursor = ?, upto = ?, unfinished = ?, seen = ? WHERE name = ?"


class DiskError(Exception):
    """The disk failed, perhaps temporarily. Nothing was written. The text is SQLite's message."""


class Refused(Exception):  # noqa: N818
    """A write is invalid; the reason is the `__cause__`. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Write:
    """One caller's write. `work` does anything other than writing events and state."""

    events: Sequence[MailboxEvent] = ()
    changes: Sequence[Change] = ()
    work: Callable[[sqlite3.Connection], Any] | None = None


@dataclass(frozen=True, slots=True)
class OffsetRow:
    """A handler's offset as it is stored."""

    handler: str
    cursor: int
    upto: int
    unfinished: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """Result of a transaction. Its events have the positions from `first` on; `used` is the size before it."""

    first: int
    end: int
    used: int
    results: Sequence[Any]


def classify(error: Exception, path: Path) -> Exception:
    """Convert a failure of SQLite to DiskError or JournalDamagedError, or return it unchanged."""
    if isinstance(error, UnicodeDecodeError):
        return JournalDamagedError(f"{path} is damaged: its schema is not text ({RESCUE})")
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Python's module itself rejected the arguments
        return error
    text = f"{error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})"
    if code & 0xFF in _TEMPORARY:
        return DiskError(text)
    if code & 0xFF in _DAMAGE:
        return JournalDamagedError(f"{path} is damaged: {text} ({RESCUE})")
    return error


class Store:
    """Owner of the writing connection. Any thread may call its methods, but not two at the same time."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None, keep: Retention) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = connection
        self._sweeper = retention.Sweeper(keep)
        (self._page,) = connection.execute("PRAGMA page_size").fetchone()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def transact(self, writes: Sequence[Write], offsets: Sequence[OffsetRow], now: float) -> Written:
        """Write everything durably, or nothing. Raises DiskError, Refused or JournalError."""
        try:
            connection = self._begin()
            start, used = connection.execute(_MEASURE).fetchone()
            # Offsets first: a write of the same transaction may open a reader, which must see the newest offset.
            if offsets:
                connection.executemany(
                    _SAVE_OFFSET, [(o.cursor, o.upto, o.unfinished, now, o.handler) for o in offsets]
                )
            try:
                results = _write(connection, start, writes, now)
            except FAILURES as error:
                if classify(error, self.file) is error:
                    raise Refused from error
                raise
            except (ValueError, TypeError, JournalError) as error:
                raise Refused from error
            only_events = all(write.work is None for write in writes)
            end = (
                start + sum(len(write.events) for write in writes) if only_events else records.end(connection)
            )
            connection.execute("COMMIT")
        except FAILURES as error:
            self._roll_back(error)
            raise classify(error, self.file) from error
        except BaseException:
            self._roll_back(None)
            raise
        return Written(start + 1, end, used * self._page, results)

    def sweep(self, now: float, present: Collection[str] | None) -> tuple[bool, list[str], int]:
        """Run one short step of retention. Return whether more is due, the removed handlers and the bytes in use.

        Raises DiskError or JournalError.
        """
        try:
            connection = self._begin()
            more, forgotten = self._sweeper.step(connection, now, present)
            connection.execute("COMMIT")
            retention.release_pages(connection)
            return more, forgotten, retention.used(connection)
        except FAILURES as error:
            self._roll_back(error)
            raise classify(error, self.file) from error

    def read_end(self) -> int:
        """Return the journal's end, which another process may have moved. Raises DiskError or JournalError."""
        try:
            return records.end(self._open())
        except FAILURES as error:
            self._roll_back(error)
            raise classify(error, self.file) from error

    @property
    def file(self) -> Path:
        return self.path or Path(FILE_NAME)

    def free(self) -> int | None:
        """Return the free bytes of the disk, or None if that is unknown."""
        if self.path is None:
            return None
        try:
            found = os.statvfs(self.path.parent)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self.file)
        return self._connection

    def _begin(self) -> sqlite3.Connection:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def _roll_back(self, error: Exception | None) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            broken = (
                error is not None and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
            )
        except sqlite3.Error:
            broken = True
        # After a failed fsync, SQLite's cache in memory cannot be trusted: reopen the database.
        if broken and self.path is not None:
            self._connection = None
            connection.close()


def _write(connection: sqlite3.Connection, after: int, writes: Sequence[Write], now: float) -> list[Any]:
    packed: list[bytes] = []
    values: dict[tuple[str, str], Change] = {}
    for write in writes:
        packed += map(records.encode, write.events)
        values |= {(change.namespace, change.key): change for change in write.changes}
    records.write_events(connection, after, packed, now)
    _save(connection, list(values.values()), now)
    return [None if write.work is None else write.work(connection) for write in writes]


def _save(connection: sqlite3.Connection, changes: Sequence[Change], now: float) -> None:
    puts = [(c.namespace, c.key, c.value, now) for c in changes if isinstance(c, Put)]
    drops = [(c.namespace, c.key) for c in changes if not isinstance(c, Put)]
    if puts:
        connection.executemany(
            "INSERT OR REPLACE INTO state (namespace, key, value, time) VALUES (?, ?, ?, ?)", puts
        )
    if drops:
        connection.executemany("DELETE FROM state WHERE namespace = ? AND key = ?", drops)
