"""Offline access to the journal, for the command line: dead letters and replay, with or without a running daemon.

It takes no lock. SQLite serializes the writes of several processes, each write here is one short transaction, and
the daemon checks every second whether the journal has grown.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from listener.journal import DeadLetter, JournalError, records
from listener.journal.schema import FAILURES, FILE_NAME, open_existing
from listener.journal.store import classify

T = TypeVar("T")


@contextmanager
def open_offline(directory: Path) -> Iterator[OfflineJournal]:
    """Open the journal of a state directory. Raises ConfigError if there is none, or if it cannot be used."""
    with closing(open_existing(directory)) as connection:
        yield OfflineJournal(connection, directory / FILE_NAME)


class OfflineJournal:
    """Blocking calls. Each raises JournalError with the path and the reason if the database fails."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def handlers(self) -> list[str]:
        """Return the names of the handlers that the journal knows."""
        rows = self._do(lambda c: c.execute("SELECT name FROM handlers ORDER BY name").fetchall())
        return [name for (name,) in rows]

    def dead_letters(
        self, handler: str | None = None, *, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        return self._do(lambda c: records.dead_letters(c, handler, after, limit))

    def dead_letter(self, number: int) -> DeadLetter | None:
        return self._do(lambda c: records.dead_letter(c, number))

    def requeue(self, numbers: Sequence[int]) -> int:
        """Requeue dead letters for their handlers. Return how many were found."""
        return self._do(lambda c: records.requeue(c, numbers, time.time()), write=True)

    def discard(self, numbers: Sequence[int]) -> int:
        """Delete dead letters. Return how many were found."""
        return self._do(lambda c: records.discard(c, numbers), write=True)

    def replay(self, handler: str, since: float, mailbox: str | None = None) -> int:
        """Redeliver to a handler what was journaled since a Unix time. Return the number of events.

        Raises JournalError also for an unknown handler; the text has the known names.
        """
        mailbox = None if mailbox is None else mailbox.casefold()
        chunks = self._do(lambda c: records.find_chunks(c, handler, since, mailbox))
        return self._do(lambda c: records.replay(c, handler, chunks, mailbox, time.time()), write=True)

    def _do(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        try:
            if not write:
                return work(self._connection)
            with self._connection:  # commits, or rolls back on an exception
                self._connection.execute("BEGIN IMMEDIATE")
                return work(self._connection)
        except FAILURES as error:
            kind = classify(error, self._path)
            raise (
                kind if isinstance(kind, JournalError) else JournalError(f"{self._path}: {error}")
            ) from error
