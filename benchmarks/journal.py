"""Measure the journal on this machine: `python benchmarks/journal.py [DIRECTORY]`.

The directory selects the disk to measure; the default is a temporary one. In the lines "busy" the event loop never
sleeps, so that the journal's thread competes for the interpreter lock (GIL). "5 ms" and "0.2 ms" are values of
`sys.setswitchinterval`. With the default of 5 ms, a thread that wakes up waits too long for the lock: the loop
releases it and takes it again more often than that.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from listener import MailboxEvent
from listener.journal import Put
from listener.journal.sqlite import SqliteJournal, open_journal

GROUPS = 50
SECONDS = 3.0
LATE = 200_000  # events that the lagging handler has not read


def events(count: int, start: int = 0, mailbox: str = "ann@example.com") -> list[MailboxEvent]:
    """Return events of realistic size: ids of 152 and 120 characters."""
    return [
        MailboxEvent(
            type="exchange.item.created",
            mailbox=mailbox,
            time="2026-03-01T12:00:00Z",
            item_id=f"AAMkA{number:0147}",
            change_key=f"CQAAABYAAA{number:030}",
            parent_folder_id=f"AAMkA{7:0115}",
        )
        for number in range(start, start + count)
    ]


async def append_rate(
    journal: SqliteJournal, size: int, busy: float | None = None, state: bool = False
) -> float:
    """Return events per second that GROUPS tasks append in batches of `size` events."""
    done = 0

    async def group(number: int) -> None:
        nonlocal done
        batch = events(size, mailbox=f"user{number}@example.com")
        changes = [Put("seen", f"{number}\n{event.item_id}", b"x" * 40) for event in batch] if state else ()
        while True:
            await journal.append(batch, changes)
            done += size

    async def keep_busy() -> None:
        while True:
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            await trio.lowlevel.checkpoint()

    started_at = time.perf_counter()
    sys.setswitchinterval(busy or 0.005)
    with trio.move_on_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for number in range(GROUPS):
                nursery.start_soon(group, number)
            if busy:
                nursery.start_soon(keep_busy)
    return done / (time.perf_counter() - started_at)


async def all_steps_rate(journal: SqliteJournal, size: int, read: int) -> float:
    """Return events per second that two concurrent handlers read and acknowledge while tasks append."""
    finished = 0

    async def handler(name: str) -> None:
        nonlocal finished
        reader = await journal.reader(name)
        while True:
            entries = await reader.read(read)
            reader.acknowledge([entry.position for entry in entries])
            finished += len(entries)

    started_at = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler, "one")
        nursery.start_soon(handler, "two")
        await trio.sleep(0.05)
        await append_rate(journal, size)
        while any(journal.figures.lag.values()):
            await trio.sleep(0.01)
        await journal.flush()
        nursery.cancel_scope.cancel()
    return finished / 2 / (time.perf_counter() - started_at)


async def from_disk_rate(journal: SqliteJournal) -> float:
    """Return events per second that a handler with a large lag reads from the disk and acknowledges."""
    reader = await journal.reader("late")
    for start in range(0, LATE, 5000):
        await journal.append(events(min(5000, LATE - start)))
    started_at, count = time.perf_counter(), 0
    while count < LATE * 3 // 4:  # the journal may still hold the rest in memory
        entries = await reader.read(1000)
        reader.acknowledge([entry.position for entry in entries])
        count += len(entries)
    return count / (time.perf_counter() - started_at)


async def main(where: Path) -> None:
    measures: list[tuple[str, Callable[[SqliteJournal], Awaitable[float]]]] = [
        *(
            (f"append, {GROUPS} groups, batches of {n}", lambda j, n=n: append_rate(j, n))
            for n in (1, 10, 100)
        ),
        *(
            (f"busy, 5 ms, batches of {n}", lambda j, n=n: append_rate(j, n, busy=0.005))
            for n in (1, 10, 100)
        ),
        *(
            (f"busy, 0.2 ms, batches of {n}", lambda j, n=n: append_rate(j, n, busy=0.0002))
            for n in (1, 10, 100)
        ),
        ("batches of 10, each event with a state change", lambda j: append_rate(j, 10, state=True)),
        ("append, read, acknowledge, 2 handlers, batches of 10", lambda j: all_steps_rate(j, 10, 500)),
        ("append, read, acknowledge, 2 handlers, batches of 100", lambda j: all_steps_rate(j, 100, 500)),
        ("append, read, acknowledge, one event per read", lambda j: all_steps_rate(j, 10, 1)),
        ("read and acknowledge from disk", from_disk_rate),
    ]
    for title, measure in measures:
        with tempfile.TemporaryDirectory(dir=where) as directory:
            async with open_journal(Path(directory)) as journal:
                rate = await measure(journal)
                size = journal.figures.size / max(journal.figures.end, 1)
            print(f"{title:56} {rate:10,.0f} events/s   {size:4.0f} bytes/event", flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main, Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()))
