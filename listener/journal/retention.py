"""What is deleted, and when: short transactions, oldest first, never what a handler has not finished."""

from __future__ import annotations

import sqlite3
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from listener.journal import Retention

STEP: Final = 200  # chunks a transaction
HIGH_WATER: Final = 0.9


def used(connection: sqlite3.Connection) -> int:
    """Bytes of the database that hold something."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


@dataclass(slots=True)
class Sweeper:
    """Deletes what is due, a step at a time."""

    retention: Retention

    def step(
        self, connection: sqlite3.Connection, now: float, present: Container[str] | None
    ) -> tuple[bool, list[str]]:
        """One step, inside a transaction: whether there may be more to do, and which handlers were forgotten.

        `present` are the handlers that are open: only others can be forgotten, and nobody while it is None.
        """
        forgotten = [] if present is None else self._forget_by_age(connection, now, present)
        crowded = used(connection) > self.retention.size * HIGH_WATER
        deleted = self._finished_readings(connection) + self._oldest(connection, now, crowded)
        if not deleted and present is not None and used(connection) >= self.retention.size:
            forgotten += self._forget_for_room(connection, present)
        more = deleted >= STEP or bool(forgotten) or (bool(deleted) and crowded)
        return more, forgotten

    def _forget_by_age(
        self, connection: sqlite3.Connection, now: float, present: Container[str]
    ) -> list[str]:
        rows = connection.execute(
            "SELECT name FROM handlers WHERE seen < ?", (now - self.retention.age,)
        ).fetchall()
        absent = [name for (name,) in rows if name not in present]
        for name in absent:
            _forget(connection, name)
        return absent

    def _forget_for_room(self, connection: sqlite3.Connection, present: Container[str]) -> list[str]:
        """The absent handler that holds the oldest event, if it is the one that keeps us from deleting."""
        row = connection.execute("SELECT name FROM handlers ORDER BY cursor LIMIT 1").fetchone()
        if row is None or row[0] in present:
            return []
        _forget(connection, row[0])
        return [row[0]]

    def _finished_readings(self, connection: sqlite3.Connection) -> int:
        """Chunks that were addressed to a handler are of no use when it has finished them, or is forgotten."""
        return connection.execute(
            """DELETE FROM chunks WHERE last IN (
                SELECT c.last FROM chunks c LEFT JOIN handlers h ON h.name = c.handler
                WHERE c.handler IS NOT NULL AND (h.name IS NULL OR c.last <= h.cursor)
                AND c.last < (SELECT max(last) FROM chunks) LIMIT ?)""",
            (STEP,),
        ).rowcount

    def _oldest(self, connection: sqlite3.Connection, now: float, crowded: bool) -> int:
        """Positions are the order: what lies before an old event is old, whatever a clock once said."""
        if crowded:
            (old,) = connection.execute("SELECT max(last) FROM chunks").fetchone()
        else:
            cutoff = now - self.retention.age
            (old,) = connection.execute("SELECT max(last) FROM chunks WHERE time < ?", (cutoff,)).fetchone()
        if old is None:
            return 0
        return connection.execute(
            """DELETE FROM chunks WHERE last IN (
                SELECT c.last FROM chunks c
                WHERE c.last <= min(?, coalesce((SELECT min(cursor) FROM handlers), ?))
                AND c.last < (SELECT max(last) FROM chunks)
                AND NOT EXISTS (SELECT 1 FROM chunks r WHERE r.source = c.last)
                ORDER BY c.last LIMIT ?)""",
            (old, old, STEP if not crowded else STEP // 4),
        ).rowcount


def _forget(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("DELETE FROM handlers WHERE name = ?", (name,))


def give_back(connection: sqlite3.Connection) -> None:
    """Returns free pages to the file system, some at a time, where they are many. Outside a transaction."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    if free > max(pages // 4, 4096):
        connection.executescript(
            "PRAGMA incremental_vacuum(512)"
        )  # execute() would take one step only: one page
