"""The journal from another process, for the command line: dead letters and replay, with or without a daemon.

It takes no lock: SQLite lets one process write after the other, each of these writes is one short transaction, and
the daemon looks every second whether the journal has become longer.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from listener.journal import DeadLetter, JournalError, records
from listener.journal.schema import FAILURES, FILE_NAME, open_beside
from listener.journal.store import sorted_out

T = TypeVar("T")


@contextmanager
def open_offline(directory: Path) -> Iterator[OfflineJournal]:
    """Raises ConfigError if there is no journal in this state directory, or none that can be used."""
    with closing(open_beside(directory)) as connection:
        yield OfflineJournal(connection, directory / FILE_NAME)


class OfflineJournal:
    """Blocking calls. Each raises JournalError if the database refuses, with its path and the reason."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def handlers(self) -> list[str]:
        """The handlers that the journal knows."""
        rows = self._do(lambda c: c.execute("SELECT name FROM handlers ORDER BY name").fetchall())
        return [name for (name,) in rows]

    def dead_letters(
        self, handler: str | None = None, *, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        return self._do(lambda c: records.dead_letters(c, handler, after, limit))

    def dead_letter(self, number: int) -> DeadLetter | None:
        return self._do(lambda c: records.dead_letter(c, number))

    def retry(self, numbers: Sequence[int]) -> int:
        """Gives dead letters back to their handlers; returns how many there were."""
        return self._do(lambda c: records.retry(c, numbers, time.time()), write=True)

    def discard(self, numbers: Sequence[int]) -> int:
        """Deletes dead letters; returns how many there were."""
        return self._do(lambda c: records.discard(c, numbers), write=True)

    def replay(self, handler: str, since: float, mailbox: str | None = None) -> int:
        """Gives a handler again what was journaled since a Unix time; returns how many events that are.

        Raises JournalError also if no handler of this name was ever there; the text names those that were.
        """
        mailbox = None if mailbox is None else mailbox.casefold()
        chunks = self._do(lambda c: records.find_chunks(c, handler, since, mailbox))
        return self._do(lambda c: records.replay(c, handler, chunks, mailbox, time.time()), write=True)

    def _do(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        try:
            if not write:
                return work(self._connection)
            with self._connection:  # commits, or rolls back if anything is raised
                self._connection.execute("BEGIN IMMEDIATE")
                return work(self._connection)
        except FAILURES as error:
            kind = sorted_out(error, self._path)
            raise (
                kind if isinstance(kind, JournalError) else JournalError(f"{self._path}: {error}")
            ) from error
