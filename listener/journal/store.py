"""The writing side of the database, one thread at a time: many callers' writes in one transaction.

A failure is one of three: a *trouble* of the disk, which may pass (all is tried again later), a *damage*, which does
not, or one write's own fault, which is told to that caller while the others are written.
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

_PASSING: Final = frozenset(
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
# Beside what SQLite itself calls damage: a table or column that is missing, a rule of the schema that is broken, a
# row number that is no number. No statement of ours can cause them in a sound database.
_DAMAGES: Final = frozenset(
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


# Each statement releases the interpreter's lock, and beside a busy loop waits for it again: few are fast.
_MEASURE: Final = """SELECT coalesce((SELECT max(last) FROM chunks), 0), page_count - freelist_count
    FROM pragma_page_count, pragma_freelist_count"""
_SAVE_STANDING: Final = "UPDATE handlers SET cursor = ?, upto = ?, unfinished = ?, seen = ? WHERE name = ?"


class DiskError(Exception):
    """The disk refuses. It may pass; nothing was written. The text says what SQLite said."""


class Refused(Exception):  # noqa: N818
    """A write failed by its own fault, which is the `__cause__`; nothing was written."""


@dataclass(frozen=True, slots=True)
class Write:
    """What one caller wants written; `work` is anything else than events and state."""

    events: Sequence[MailboxEvent] = ()
    changes: Sequence[Change] = ()
    work: Callable[[sqlite3.Connection], Any] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a handler is: a row to be saved."""

    handler: str
    cursor: int
    upto: int
    unfinished: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a transaction: the events have the positions from `first` on, in order; `used` is from before."""

    first: int
    end: int
    used: int
    results: Sequence[Any]


def sorted_out(error: Exception, path: Path) -> Exception:
    """What a failure of SQLite is for the caller: Trouble, JournalDamagedError, or itself."""
    if isinstance(error, UnicodeDecodeError):
        return JournalDamagedError(f"{path} is damaged: its schema is no text ({RESCUE})")
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Python's module itself refused the arguments
        return error
    text = f"{error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})"
    if code & 0xFF in _PASSING:
        return DiskError(text)
    if code & 0xFF in _DAMAGES:
        return JournalDamagedError(f"{path} is damaged: {text} ({RESCUE})")
    return error


class Store:
    """Owns the writing connection. Its methods may be called from any thread, never from two at once."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None, keep: Retention) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = connection
        self._sweeper = retention.Sweeper(keep)
        (self._page,) = connection.execute("PRAGMA page_size").fetchone()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def transact(self, writes: Sequence[Write], standings: Sequence[Standing], now: float) -> Written:
        """Writes all of it, durably, or nothing. Raises Trouble, Refused or JournalError."""
        try:
            connection = self._begin()
            start, used = connection.execute(_MEASURE).fetchone()
            if standings:  # first: who opens a handler in this transaction goes on from there
                connection.executemany(
                    _SAVE_STANDING, [(s.cursor, s.upto, s.unfinished, now, s.handler) for s in standings]
                )
            try:
                results = _write(connection, start, writes, now)
            except FAILURES as error:
                if sorted_out(error, self.file) is error:
                    raise Refused from error
                raise
            except (ValueError, TypeError, JournalError) as error:
                raise Refused from error
            alone = all(write.work is None for write in writes)
            end = start + sum(len(write.events) for write in writes) if alone else records.end(connection)
            connection.execute("COMMIT")
        except FAILURES as error:
            self._roll_back(error)
            raise sorted_out(error, self.file) from error
        except BaseException:
            self._roll_back(None)
            raise
        return Written(start + 1, end, used * self._page, results)

    def sweep(self, now: float, present: Collection[str] | None) -> tuple[bool, list[str], int]:
        """One short step of retention: whether there is more to do, who was forgotten, the bytes in use.

        Raises Trouble or JournalError.
        """
        try:
            connection = self._begin()
            more, forgotten = self._sweeper.step(connection, now, present)
            connection.execute("COMMIT")
            retention.give_back(connection)
            return more, forgotten, retention.used(connection)
        except FAILURES as error:
            self._roll_back(error)
            raise sorted_out(error, self.file) from error

    def look(self) -> int:
        """The journal's end, which another process may have moved. Raises Trouble or JournalError."""
        try:
            return records.end(self._open())
        except FAILURES as error:
            self._roll_back(error)
            raise sorted_out(error, self.file) from error

    @property
    def file(self) -> Path:
        return self.path or Path(FILE_NAME)

    def free(self) -> int | None:
        """Bytes that are free on the disk."""
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
        if (
            broken and self.path is not None
        ):  # after a failed fsync nothing that SQLite has in memory is trusted
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
