"""Helpers for the tests of the journal."""

import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from listener.event import MailboxEvent
from listener.journal import Entry, Reader, Retention
from listener.journal.schema import FILE_NAME
from listener.journal.sqlite import SqliteJournal, inline, open_journal


def event(number: int, mailbox: str = "ann@x.example") -> MailboxEvent:
    return MailboxEvent(
        type="exchange.item.created", mailbox=mailbox, time="2026-01-01T00:00:00Z", item_id=str(number)
    )


def events(numbers: Iterable[int], mailbox: str = "ann@x.example") -> list[MailboxEvent]:
    return [event(number, mailbox) for number in numbers]


def items(entries: Iterable[Entry]) -> list[int]:
    return [int(entry.event.item_id or "-1") for entry in entries]


@dataclass
class Clock:
    """A wall clock that tests set."""

    time: float = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@asynccontextmanager
async def opened(
    directory: Path | None,
    clock: Clock | None = None,
    keep: Retention | None = None,
    memory: int = 20_000,
) -> AsyncIterator[SqliteJournal]:
    """Open a journal without threads, for virtual clocks."""
    async with open_journal(
        directory, keep=keep, memory=memory, now=clock or Clock(), run_sync=inline
    ) as journal:
        yield journal


def crashed(directory: Path, name: str) -> Path:
    """Copy the journal's files as a process killed at this moment would leave them. Return the copy's directory."""
    image = directory.parent / name
    image.mkdir()
    for suffix in ("", "-wal"):
        file = directory / (FILE_NAME + suffix)
        if file.exists():
            shutil.copy(file, image / file.name)
    return image


async def everything(reader: Reader, limit: int = 100) -> list[Entry]:
    """Read all events that are available now, without acknowledging them."""
    found: list[Entry] = []
    with trio.move_on_after(0.01):
        while True:
            found += await reader.read(limit)
    return found
