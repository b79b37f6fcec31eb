"""Measure events per second through all steps: publish, journal on the disk, deliver to a handler, acknowledge.

`python benchmarks/delivery.py [DIRECTORY]`: the directory selects the disk to measure; by default a temporary one.
50 groups publish batches of ten events as fast as the journal accepts them. The time ends when the handler has
finished the last event and the journal has stored the acknowledgement.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import structlog
import trio

from listener import Handler, MailboxEvent
from listener.delivery.delivery import Delivery, DeliveryLimits, Worker
from listener.filters import EventFilter
from listener.handler import BatchHandler, HandlerContext
from listener.handlers.file import open_file
from listener.journal.sqlite import open_journal

GROUPS = 50
MAILBOXES = 200  # in each group
BATCH = 10
SECONDS = 5.0


def events(group: int, start: int) -> list[MailboxEvent]:
    """Return events of realistic size: ids of 152 and 120 characters. Each event is of another mailbox."""
    return [
        MailboxEvent(
            type="exchange.item.created",
            mailbox=f"user{number % MAILBOXES}.{group}@example.com",
            time="2026-03-01T12:00:00Z",
            item_id=f"AAMkA{number:0147}",
            change_key=f"CQAAABYAAA{number:030}",
            parent_folder_id=f"AAMkA{7:0115}",
        )
        for number in range(start, start + BATCH)
    ]


class Loader:
    """A batch handler with a typical task: convert the events to JSON and write them."""

    max_batch = 500

    def __init__(self, path: Path) -> None:
        self._path = path

    async def handle_batch(self, events: Sequence[MailboxEvent]) -> None:
        with self._path.open("a") as file:
            file.write("".join([event.to_json() + "\n" for event in events]))


@asynccontextmanager
async def open_loader(path: Path) -> AsyncIterator[BatchHandler]:
    yield Loader(path)


@asynccontextmanager
async def open_nothing(_path: Path) -> AsyncIterator[Handler]:
    async def handle(_event: MailboxEvent) -> None:
        await trio.lowlevel.checkpoint()

    yield handle


@asynccontextmanager
async def open_lines(path: Path) -> AsyncIterator[BatchHandler]:
    async with open_file(path=path) as handler:
        yield handler


class Measured(NamedTuple):
    """A handler, as the daemon gets it from the configuration."""

    name: str
    open: Callable[[], HandlerContext]
    accepts: EventFilter


async def rate(directory: Path, opener: Callable[[Path], HandlerContext]) -> float:
    """Return events per second."""
    source = Measured("measured", lambda: opener(directory / "out.jsonl"), EventFilter())
    worker = Worker(source, DeliveryLimits())
    delivery = Delivery((worker,))
    published = 0

    async def group(number: int) -> None:
        nonlocal published
        start = 0
        while True:
            await delivery.publish(events(number, start))
            start += BATCH
            published += BATCH

    async with open_journal(directory / "state") as journal, trio.open_nursery() as nursery:
        await nursery.start(delivery.run, journal)
        started_at = time.perf_counter()
        with trio.move_on_after(SECONDS):
            async with trio.open_nursery() as groups:
                for number in range(GROUPS):
                    groups.start_soon(group, number)
        await delivery.drain(600)
        await journal.flush()
        assert worker.delivered >= published
        return worker.delivered / (time.perf_counter() - started_at)


async def main(where: Path) -> None:
    for title, opener in (
        ("batches of 500, written as JSON lines", open_loader),
        ("one event per call, no work", open_nothing),
        ("built-in file handler, each batch synced to disk", open_lines),
    ):
        with tempfile.TemporaryDirectory(dir=where) as directory:
            print(f"{title:56} {await rate(Path(directory), opener):10,.0f} events/s", flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main, Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()))
