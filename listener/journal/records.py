"""Events and dead letters as rows: what is read and written on a connection, inside the caller's transaction.

The daemon's journal and the command line beside it do the same things through these functions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Sequence
from typing import Final

import msgspec

from listener.event import MailboxEvent
from listener.journal import OWNED, DeadLetter, Entry, JournalError

CHUNK: Final = 256
"""The most events in one row. A reader that wants one of them decodes them all."""

encode = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(MailboxEvent).decode
_decode_events = msgspec.msgpack.Decoder(list[MailboxEvent]).decode


def end(connection: sqlite3.Connection) -> int:
    """The position of the newest event. (Retention always leaves the newest chunk, so it never goes back.)"""
    return int(connection.execute("SELECT coalesce(max(last), 0) FROM chunks").fetchone()[0])


def write_events(
    connection: sqlite3.Connection,
    after: int,
    packed: Sequence[bytes],
    now: float,
    handler: str | None = None,
) -> int:
    """Writes encoded events behind position `after`; returns the new end."""
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
    connection: sqlite3.Connection, handler: str, after: int, limit: int, until: int
) -> tuple[list[Entry], int]:
    """Entries for a handler behind `after`: `limit` of them or a few more, and the position that they reach to."""
    found: list[Entry] = []
    cursor = connection.execute(
        """SELECT c.last, c.count, c.mailbox, coalesce(s.body, c.body)
        FROM chunks c LEFT JOIN chunks s ON s.last = c.source
        WHERE c.last > ? AND c.last <= ? AND (c.handler IS NULL OR c.handler = ?) ORDER BY c.last""",
        (after, until, handler),
    )
    try:
        for last, count, mailbox, body in cursor:
            first = last - count + 1
            events = _decode_events(body) if body is not None else ()
            for position, event in enumerate(events, first):
                if position > after and (mailbox is None or event.mailbox.casefold() == mailbox):
                    found.append(Entry(position, event))
            if len(found) >= limit:
                return found, last
        return found, until
    finally:
        cursor.close()  # an open statement would keep the write-ahead log from being emptied


def find_recent(connection: sqlite3.Connection, since: float, most: int) -> int:
    """The position behind which the events since that time lie, or `most` of them."""
    here = end(connection)
    (first,) = connection.execute("SELECT min(last) FROM chunks WHERE time >= ?", (since,)).fetchone()
    return here if first is None else max(first - 1, here - most)


def read_recent(connection: sqlite3.Connection, after: int, until: int) -> tuple[list[MailboxEvent], int]:
    """Some events behind `after`, up to `until`, and the position that they reach to.

    What is addressed to one handler only was told before, and is left out.
    """
    rows = connection.execute(
        """SELECT last, body FROM chunks
        WHERE last > ? AND last <= ? AND handler IS NULL AND body IS NOT NULL ORDER BY last LIMIT 8""",
        (after, until),
    ).fetchall()
    return [event for _, body in rows for event in _decode_events(body)], rows[-1][0] if rows else until


def find_again(
    connection: sqlite3.Connection, handler: str, wanted: Container[int], lowest: int
) -> tuple[list[Entry], int | None]:
    """Those of the wanted positions that lie in the same chunk as the lowest of them, and where that chunk ends.

    None stands for the end if there is no such chunk, nor one behind it.
    """
    row = connection.execute(
        "SELECT last FROM chunks WHERE last >= ? AND (handler IS NULL OR handler = ?) ORDER BY last LIMIT 1",
        (lowest, handler),
    ).fetchone()
    if row is None:
        return [], None
    entries, _ = read_events(connection, handler, lowest - 1, 1, row[0])
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
    """One letter a handler and position: a repeat after a crash takes the place of the first."""
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


def _letter(row: tuple[int, str, int, bytes, str, str, int, float]) -> DeadLetter:
    number, handler, position, event, reason, traceback, attempts, time = row
    return DeadLetter(
        number=number,
        handler=handler,
        position=position,
        event=_decode_event(event),
        reason=reason,
        traceback=traceback,
        attempts=attempts,
        time=time,
    )


def discard(connection: sqlite3.Connection, numbers: Iterable[int]) -> int:
    return sum(
        connection.execute("DELETE FROM dead_letters WHERE number = ?", (number,)).rowcount
        for number in numbers
    )


def retry(connection: sqlite3.Connection, numbers: Iterable[int], now: float) -> int:
    """Moves letters to the end of the journal, addressed to their handlers, which need not be there now."""
    count = 0
    for number in sorted(set(numbers)):
        row = connection.execute(
            "DELETE FROM dead_letters WHERE number = ? RETURNING handler, event", (number,)
        ).fetchone()
        if row is not None:
            handler, event = row
            add_handler(connection, handler, now)
            write_events(connection, end(connection), [event], now, handler)
            count += 1
    return count


def add_handler(connection: sqlite3.Connection, handler: str, now: float) -> None:
    """A handler that is not known yet starts behind the newest event."""
    here = end(connection)
    connection.execute(
        "INSERT OR IGNORE INTO handlers (name, cursor, upto, unfinished, seen) VALUES (?, ?, ?, ?, ?)",
        (handler, here, here, encode([]), now),
    )


def find_chunks(
    connection: sqlite3.Connection, handler: str, since: float, mailbox: str | None
) -> list[tuple[int, int]]:
    """What a replay reads again: the chunks from the first one of that time on, and how many events of each.

    All that lies behind that one counts, whatever its time: a clock that was set back must not hide events.
    """
    known = [name for (name,) in connection.execute("SELECT name FROM handlers ORDER BY name")]
    if handler not in known:
        raise JournalError(f"no handler {handler} was ever here; known are: {', '.join(known) or 'none'}")
    (first,) = connection.execute("SELECT min(last) FROM chunks WHERE time >= ?", (since,)).fetchone()
    if first is None:
        return []
    after, found = first - 1, list[tuple[int, int]]()
    while True:  # a page at a time, so that no long reading keeps the write-ahead log from being emptied
        rows = connection.execute(
            f"""SELECT last, count, {"body" if mailbox else "NULL"} FROM chunks
            WHERE last > ? AND handler IS NULL ORDER BY last LIMIT 64""",  # noqa: S608
            (after,),
        ).fetchall()
        if not rows:
            return found
        for last, count, body in rows:
            if mailbox is not None:
                count = sum(event.mailbox.casefold() == mailbox for event in _decode_events(body))
            if count:
                found.append((last, count))
        after = rows[-1][0]


def replay(
    connection: sqlite3.Connection,
    handler: str,
    chunks: Iterable[tuple[int, int]],
    mailbox: str | None,
    now: float,
) -> int:
    """Puts second readings of chunks at the end. Those deleted meanwhile are left out. Returns the events' number."""
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
    """Those whose saved state has no value that was written since then."""
    rows = connection.execute(
        """SELECT substr(key, 1, instr(key, ?) - 1) AS owner FROM state WHERE namespace = ? AND instr(key, ?) > 0
        GROUP BY owner HAVING max(time) < ? ORDER BY owner""",
        (OWNED, namespace, OWNED, before),
    ).fetchall()
    return [owner for (owner,) in rows]


def forget_owner(connection: sqlite3.Connection, namespace: str, owner: str, before: float) -> bool:
    """Removes the saved state of an owner, unless something of it was written since then."""
    prefix = owner + OWNED
    mine = (namespace, prefix, prefix + "\U0010ffff")
    (written,) = connection.execute(
        "SELECT max(time) FROM state WHERE namespace = ? AND key >= ? AND key < ?", mine
    ).fetchone()
    if written is None or written >= before:
        return False
    connection.execute("DELETE FROM state WHERE namespace = ? AND key >= ? AND key < ?", mine)
    return True
