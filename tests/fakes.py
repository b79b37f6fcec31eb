"""A journal in memory, for tests of its callers. It keeps the rules of listener/journal/__init__.py."""

from collections.abc import Callable, Iterable, Sequence

import trio

from listener.event import MailboxEvent
from listener.journal import Change, DeadLetter, Entry


class FakeReader:
    def __init__(self, journal: "FakeJournal", handler: str, wants: Callable[[MailboxEvent], bool]) -> None:
        self.journal = journal
        self.handler = handler
        self.wants = wants
        self.next = 0
        self.acknowledged: set[int] = set()
        self.unacknowledged = 0

    @property
    def unfinished(self) -> int:
        return self.unacknowledged

    @property
    def lag(self) -> int:
        return len(self.journal.entries) - self.next + self.unacknowledged

    async def read(self, limit: int) -> list[Entry]:
        await trio.lowlevel.checkpoint()
        while True:
            entries = self.journal.entries[self.next : self.next + limit]
            self.next += len(entries)
            if entries:
                wanted = [entry for entry in entries if self.wants(entry.event)]
                self.unacknowledged += len(wanted)
                return wanted
            await self.journal.more.wait()

    def acknowledge(self, positions: Iterable[int]) -> None:
        for position in positions:
            assert position not in self.acknowledged
            self.acknowledged.add(position)
            self.unacknowledged -= 1

    async def dead_letter(
        self, entries: Sequence[Entry], *, reason: str, traceback: str = "", attempts: int = 1
    ) -> None:
        await trio.lowlevel.checkpoint()
        for number, entry in enumerate(entries, len(self.journal.letters) + 1):
            self.journal.letters.append(
                DeadLetter(
                    number=number,
                    handler=self.handler,
                    position=entry.position,
                    event=entry.event,
                    reason=reason,
                    traceback=traceback,
                    attempts=attempts,
                    time=0.0,
                )
            )
        self.acknowledge([entry.position for entry in entries])


class FakeJournal:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.letters: list[DeadLetter] = []
        self.readers: dict[str, FakeReader] = {}
        self.more = trio.Event()

    async def append(self, events: Sequence[MailboxEvent], changes: Sequence[Change] = ()) -> None:
        await trio.lowlevel.checkpoint()
        self.entries += [Entry(len(self.entries) + n, event) for n, event in enumerate(events, 1)]
        self.more.set()
        self.more = trio.Event()

    async def reader(self, handler: str, wants: Callable[[MailboxEvent], bool] | None = None) -> FakeReader:
        await trio.lowlevel.checkpoint()
        self.readers[handler] = FakeReader(self, handler, wants or (lambda _event: True))
        return self.readers[handler]
