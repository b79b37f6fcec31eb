"""Retention: delete old events in short transactions, oldest first, never one that a handler has not finished."""

from __future__ import annotations

import sqlite3
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from listener.journal import Retention

STEP: Final = 200  # chunks per transaction
HIGH_WATER: Final = 0.9


def used(connection: sqlite3.Connection) -> int:
    """Return the bytes of the database that are in use."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


@dataclass(slots=True)
class Sweeper:
    """Deletes events and handlers that exceed the retention, step by step."""

    retention: Retention

    def step(
        self, connection: sqlite3.Connection, now: float, present: Container[str] | None
    ) -> tuple[bool, list[str]]:
        """Delete one step's worth, inside a transaction. Return whether more may be due, and the removed handlers.

        `present` are the open handlers: only other handlers can be removed, and none while it is None.
        """
        forgotten = [] if present is None else self._forget_by_age(connection, now, present)
        crowded = used(connection) > self.retention.size * HIGH_WATER
        deleted = self._delete_redelivered(connection) + self._delete_oldest(connection, now, crowded)
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
        """Remove the handler with the lowest offset if it is absent: it is the one that prevents deletion."""
        row = connection.execute("SELECT name FROM handlers ORDER BY cursor LIMIT 1").fetchone()
        if row is None or row[0] in present:
            return []
        _forget(connection, row[0])
        return [row[0]]

    def _delete_redelivered(self, connection: sqlite3.Connection) -> int:
        """Delete chunks for one handler only that it has finished, or whose handler was removed."""
        return connection.execute(
            """DELETE FROM chunks WHERE last IN (
                SELECT c.last FROM chunks c LEFT JOIN handlers h ON h.name = c.handler
                WHERE c.handler IS NOT NULL AND (h.name IS NULL OR c.last <= h.cursor)
                AND c.last < (SELECT max(last) FROM chunks) LIMIT ?)""",
            (STEP,),
        ).rowcount

    def _delete_oldest(self, connection: sqlite3.Connection, now: float, crowded: bool) -> int:
        """Delete old chunks. Everything before an old event is old, whatever its time: the clock may have jumped."""
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


def release_pages(connection: sqlite3.Connection) -> None:
    """Return some free pages to the file system if there are many. Must be called outside of a transaction."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    if free > max(pages // 4, 4096):
        # Not execute(), which makes one step only: that frees one page.
        connection.executescript("PRAGMA incremental_vacuum(512)")
