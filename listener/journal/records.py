"""Read and write events and dead letters as rows, on a connection, inside the caller's transaction.

The daemon's journal and the command line's offline access both use these functions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from listener.event import MailboxEvent
from listener.journal import OWNED, DeadLetter, Entry, JournalDamagedError, JournalError
from listener.journal.progress import Progress

CHUNK: Final = 256
"""The most events in one row. A reader that wants one of them decodes all of them."""

encode = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(MailboxEvent).decode
_decode_events = msgspec.msgpack.Decoder(list[MailboxEvent]).decode
_decode_parts = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode

UNREADABLE: Final = (ValueError, TypeError, RecursionError, MemoryError, OverflowError)
"""The exceptions that decoding damaged bytes can raise."""


class Damage(NamedTuple):
    """Unreadable events: their number between the positions `first` and `last`, both included."""

    first: int
    last: int
    events: int


def events_in(body: object) -> list[MailboxEvent | None]:
    """Decode the events of a chunk's body, with None for each event that cannot be decoded.

    Raises one of UNREADABLE if the body as a whole cannot be decoded.
    """
    try:
        return list(_decode_events(body))  # type: ignore[arg-type]
    except UNREADABLE:
        return [_event_in(part) for part in _decode_parts(body)]  # type: ignore[arg-type]


def _event_in(packed: object) -> MailboxEvent | None:
    try:
        return _decode_event(packed)  # type: ignore[arg-type]
    except UNREADABLE:
        return None


def _readable(
    body: object, last: int, count: object, damaged: list[Damage]
) -> list[tuple[int, MailboxEvent]]:
    """Return the events of a chunk with their positions. Append unreadable events to `damaged`."""
    expected = count if isinstance(count, int) and 1 <= count <= CHUNK else 1
    try:
        events = events_in(body)
    except UNREADABLE:
        events = []
    found = [(at, event) for at, event in enumerate(events, last - len(events) + 1) if event is not None]
    if len(found) < max(expected, len(events)):
        size = max(expected, len(events))
        damaged.append(Damage(last - size + 1, last, size - len(found)))
    return found


def end(connection: sqlite3.Connection) -> int:
    """Return the position of the newest event. It never decreases, because retention keeps the newest chunk."""
    return int(connection.execute("SELECT coalesce(max(last), 0) FROM chunks").fetchone()[0])


def write_events(
    connection: sqlite3.Connection,
    after: int,
    packed: Sequence[bytes],
    now: float,
    handler: str | None = None,
) -> int:
    """Write encoded events after position `after`. Return the new end."""
    for start in range(0, len(packed), CHUNK):
        part = packed[start : start + CHUNK]
        after += len(part)
        header = b"\xdc" + len(part).to_bytes(2, "big")  # MessagePack's "array 16"
        connection.execute(
            "INSERT INTO chunks (last, count, time, handler, body) VALUES (?, ?, ?, ?, ?)",
            (after, len(part), now, handler, header + b"".join(part)),
        )
    return after


def read_events(
    connection: sqlite3.Connection, handler: str, after: int, limit: int, until: int, damaged: list[Damage]
) -> tuple[list[Entry], int]:
    """Return `limit` entries or a few more for a handler after position `after`, and the position they reach to.

    Unreadable events are skipped and listed in `damaged`.
    """
    damaged.clear()
    found: list[Entry] = []
    cursor = connection.execute(
        """SELECT c.last, c.count, c.mailbox, coalesce(s.body, c.body)
        FROM chunks c LEFT JOIN chunks s ON s.last = c.source
        WHERE c.last > ? AND c.last <= ? AND (c.handler IS NULL OR c.handler = ?) ORDER BY c.last""",
        (after, until, handler),
    )
    try:
        for last, count, mailbox, body in cursor:
            for position, event in _readable(body, last, count, damaged):
                if position > after and (mailbox is None or event.mailbox.casefold() == mailbox):
                    found.append(Entry(position, event))
            if len(found) >= limit:
                return found, last
        return found, until
    finally:
        cursor.close()  # an open statement would prevent SQLite from truncating the write-ahead log


def find_recent(connection: sqlite3.Connection, since: float, most: int) -> int:
    """Return the position after which the events since that time start, or after which `most` events follow."""
    here = end(connection)
    (first,) = connection.execute("SELECT min(last) FROM chunks WHERE time >= ?", (since,)).fetchone()
    return here if first is None else max(first - 1, here - most)


def read_recent(
    connection: sqlite3.Connection, after: int, until: int, damaged: list[Damage]
) -> tuple[list[MailboxEvent], int]:
    """Return some events after position `after`, up to `until`, and the position they reach to.

    Skips unreadable events, and those for one handler only: they repeat earlier events.
    """
    damaged.clear()
    rows = connection.execute(
        """SELECT last, count, body FROM chunks
        WHERE last > ? AND last <= ? AND handler IS NULL AND source IS NULL ORDER BY last LIMIT 8""",
        (after, until),
    ).fetchall()
    events = [event for last, count, body in rows for _, event in _readable(body, last, count, damaged)]
    return events, rows[-1][0] if rows else until


def read_unfinished(
    connection: sqlite3.Connection, handler: str, wanted: Container[int], lowest: int, damaged: list[Damage]
) -> tuple[list[Entry], int | None]:
    """Return the wanted entries in the chunk of the lowest wanted position, and the end of that chunk.

    The end is None if neither that chunk nor a later one exists.
    """
    row = connection.execute(
        "SELECT last FROM chunks WHERE last >= ? AND (handler IS NULL OR handler = ?) ORDER BY last LIMIT 1",
        (lowest, handler),
    ).fetchone()
    if row is None:
        return [], None
    entries, _ = read_events(connection, handler, lowest - 1, 1, row[0], damaged)
    return [entry for entry in entries if entry.position in wanted], row[0]


def write_dead_letters(
    connection: sqlite3.Connection,
    handler: str,
    entries: Iterable[Entry],
    reason: str,
    traceback: str,
    attempts: int,
    now: float,
) -> None:
    """Write one dead letter per handler and position: a repeat after a crash replaces the first one."""
    connection.executemany(
        """INSERT INTO dead_letters (handler, position, event, reason, traceback, attempts, time)
        VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (handler, position) DO UPDATE SET
        reason = excluded.reason, traceback = excluded.traceback, attempts = excluded.attempts, time = excluded.time
        """,
        [(handler, e.position, encode(e.event), reason, traceback, attempts, now) for e in entries],
    )


def dead_letters(
    connection: sqlite3.Connection, handler: str | None, after: int, limit: int
) -> list[DeadLetter]:
    rows = connection.execute(
        f"SELECT {_LETTER} FROM dead_letters WHERE number > ? AND (? IS NULL OR handler = ?) ORDER BY number LIMIT ?",  # noqa: S608
        (after, handler, handler, limit),
    ).fetchall()
    return [_letter(row) for row in rows]


def dead_letter(connection: sqlite3.Connection, number: int) -> DeadLetter | None:
    row = connection.execute(
        f"SELECT {_LETTER} FROM dead_letters WHERE number = ?",  # noqa: S608
        (number,),
    ).fetchone()
    return None if row is None else _letter(row)


_LETTER: Final = "number, handler, position, event, reason, traceback, attempts, time"


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    """Decode a row. An unreadable event becomes UNREADABLE_EVENT: the dead letter can still be shown and deleted."""
    number, handler, position, event, reason, traceback, attempts, time = row
    return DeadLetter(
        number=number,
        handler=str(handler),
        position=position if isinstance(position, int) else 0,
        event=_event_in(event) or UNREADABLE_EVENT,
        reason=str(reason),
        traceback=str(traceback),
        attempts=attempts if isinstance(attempts, int) else 0,
        time=float(time) if isinstance(time, int | float) else 0.0,
    )


UNREADABLE_EVENT: Final = MailboxEvent(type="unreadable", mailbox="", time="")


def discard(connection: sqlite3.Connection, numbers: Iterable[int]) -> int:
    return sum(
        connection.execute("DELETE FROM dead_letters WHERE number = ?", (number,)).rowcount
        for number in numbers
    )


def requeue(connection: sqlite3.Connection, numbers: Iterable[int], now: float) -> int:
    """Move dead letters to the end of the journal, for their handlers only. The handlers need not exist now."""
    count = 0
    for number in sorted(set(numbers)):
        row = connection.execute(
            "SELECT handler, event FROM dead_letters WHERE number = ?", (number,)
        ).fetchone()
        if row is not None and _event_in(row[1]) is not None:  # an unreadable event stays a dead letter
            handler, event = row
            connection.execute("DELETE FROM dead_letters WHERE number = ?", (number,))
            add_handler(connection, handler, now)
            write_events(connection, end(connection), [event], now, handler)
            count += 1
    return count


def add_handler(connection: sqlite3.Connection, handler: str, now: float) -> None:
    """Add a handler unless it is known. Its offset is the end of the journal."""
    here = end(connection)
    connection.execute(
        "INSERT OR IGNORE INTO handlers (name, cursor, upto, unfinished, seen) VALUES (?, ?, ?, ?, ?)",
        (handler, here, here, encode([]), now),
    )


class Repaired(NamedTuple):
    """A handler whose offset could not be read. It continues after this position."""

    handler: str
    position: int


def repair_progress(connection: sqlite3.Connection, now: float) -> list[Repaired]:
    """Reset the damaged offsets of handlers to a position that they had certainly finished. Return those handlers.

    Some events are delivered again then, none is skipped. `cursor` is redundant with `upto` and `unfinished`, so
    most damage is detected. Raises JournalDamagedError if the end of the journal is not a possible position.
    """
    here = end(connection)
    if not 0 <= here < HIGHEST:
        raise JournalDamagedError(f"the newest event has the invalid position {here}")
    repaired = []
    rows = connection.execute(
        "SELECT name, cursor, upto, unfinished, seen FROM handlers ORDER BY name"
    ).fetchall()
    for name, cursor, upto, unfinished, seen in rows:
        sound = isinstance(cursor, int) and 0 <= cursor <= here
        safe = cursor if sound else 0
        try:
            if not (isinstance(upto, int) and 0 <= upto <= here):
                raise ValueError("invalid position")
            safe = min(safe, Progress.unpack(upto, unfinished).cursor)
            good = sound and safe == cursor and Progress.unpack(upto, unfinished).cursor == cursor
        except UNREADABLE:
            good = False
        if not good:
            connection.execute(
                "UPDATE handlers SET cursor = ?, upto = ?, unfinished = ? WHERE name = ?",
                (safe, safe, encode([]), name),
            )
            repaired.append(Repaired(str(name), safe))
        if not isinstance(seen, int | float):
            connection.execute("UPDATE handlers SET seen = ? WHERE name = ?", (now, name))
    return repaired


HIGHEST: Final = 1 << 62
"""Upper bound of positions: SQLite's row numbers end at 2^63."""


def find_chunks(
    connection: sqlite3.Connection, handler: str, since: float, mailbox: str | None
) -> list[tuple[int, int]]:
    """Return the chunks that a replay redelivers, each with its number of events.

    These are the first chunk at or after `since` and all later ones, whatever their time: events must not be missed
    because a clock was set back. Raises JournalError for an unknown handler.
    """
    known = [name for (name,) in connection.execute("SELECT name FROM handlers ORDER BY name")]
    if handler not in known:
        raise JournalError(f'unknown handler "{handler}"; known handlers: {", ".join(known) or "none"}')
    (first,) = connection.execute("SELECT min(last) FROM chunks WHERE time >= ?", (since,)).fetchone()
    if first is None:
        return []
    after, found = first - 1, list[tuple[int, int]]()
    while True:  # in pages: a long read would prevent SQLite from truncating the write-ahead log
        rows = connection.execute(
            f"""SELECT last, count, {"body" if mailbox else "NULL"} FROM chunks
            WHERE last > ? AND handler IS NULL ORDER BY last LIMIT 64""",  # noqa: S608
            (after,),
        ).fetchall()
        if not rows:
            return found
        for last, count, body in rows:
            if mailbox is not None:
                events = [event for _, event in _readable(body, last, count, [])]
                count = sum(event.mailbox.casefold() == mailbox for event in events)
            if isinstance(count, int) and 0 < count <= CHUNK:
                found.append((last, count))
        after = rows[-1][0]


def replay(
    connection: sqlite3.Connection,
    handler: str,
    chunks: Iterable[tuple[int, int]],
    mailbox: str | None,
    now: float,
) -> int:
    """Append references to chunks, for one handler. Skip chunks deleted meanwhile. Return the number of events."""
    here, total = end(connection), 0
    for source, events in chunks:
        written = connection.execute(
            """INSERT INTO chunks (last, count, time, handler, mailbox, source)
            SELECT ? + count, count, ?, ?, ?, last FROM chunks WHERE last = ? RETURNING last""",
            (here, now, handler, mailbox, source),
        ).fetchone()
        if written is not None:
            here, total = written[0], total + events
    return total


def owners(connection: sqlite3.Connection, namespace: str, before: float) -> list[str]:
    """Return the owners of stored state whose values were all written before a Unix time."""
    rows = connection.execute(
        """SELECT substr(key, 1, instr(key, ?) - 1) AS owner FROM state WHERE namespace = ? AND instr(key, ?) > 0
        GROUP BY owner HAVING max(CAST(time AS REAL)) < ? ORDER BY owner""",
        (OWNED, namespace, OWNED, before),
    ).fetchall()
    return [owner for (owner,) in rows]


def forget_owner(connection: sqlite3.Connection, namespace: str, owner: str, before: float) -> bool:
    """Remove the stored state of an owner, unless a value was written since `before`. Return whether it did."""
    prefix = owner + OWNED
    key_range = (namespace, prefix, prefix + "\U0010ffff")
    (written,) = connection.execute(
        "SELECT max(CAST(time AS REAL)) FROM state WHERE namespace = ? AND key >= ? AND key < ?", key_range
    ).fetchone()
    if written is None or written >= before:
        return False
    connection.execute("DELETE FROM state WHERE namespace = ? AND key >= ? AND key < ?", key_range)
    return True
