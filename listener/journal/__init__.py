"""The durable log between the streams and the handlers, and the state that must agree with it.

    async with open_journal(directory) as journal:                  # listener/journal/sqlite.py
        await journal.append(events, [Put("sync", key, state)])     # returns when both are on the disk
        reader = await journal.reader("audit")
        for position, event in await reader.read(500):
            ...
            reader.acknowledge([position])

Rules, which every implementation keeps:

1. An event has a position, from 1, that only grows. Events of one mailbox lie in the order in which they were
   appended. Positions may have holes.
2. What `append` has returned for survives a crash at any instruction. Events and changes of one call are kept
   together or not at all.
3. A reader hands out every event that its handler wants, in order of position, until it is acknowledged. After a
   crash some that were acknowledged may come again; none that was not is left out.
4. Acknowledgements may come in any order: what is kept of a handler is how far it has read and which of those
   events it has not finished.
5. Nothing is deleted that a handler has not finished. A journal that is full, or whose disk is, lets appends wait.
6. A handler that the journal has never seen starts at the end: it gets what comes from now on. `replay` gives it
   the past. A handler that is no longer opened keeps its place until that is older than `Retention.age`, or
   until the journal is full and only absent handlers hold it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from listener.errors import ListenerError
from listener.event import MailboxEvent


class JournalError(ListenerError):
    """The journal cannot go on: it is damaged, or was asked for something that it does not have."""


class JournalDamagedError(JournalError):
    """The database file is damaged: another start ends in the same way, until somebody has seen to it."""


class Entry(NamedTuple):
    """An event and its place in the journal."""

    position: int
    event: MailboxEvent


OWNED = "\x1f"
"""Stands in a key of the saved state behind whom the value is about, if that is a mailbox."""


class Put(NamedTuple):
    """Sets a value of the saved state. Keys sort by their code points; `value` is the caller's own encoding."""

    namespace: str
    key: str
    value: bytes


class Drop(NamedTuple):
    """Removes a value of the saved state; one that is not there is no error."""

    namespace: str
    key: str


Change: TypeAlias = Put | Drop


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a handler could not handle. `time` is Unix time; `traceback` is empty if nothing was raised."""

    number: int
    handler: str
    position: int
    event: MailboxEvent
    reason: str
    traceback: str
    attempts: int
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much is kept.

    Events that all handlers have finished are kept for `age` seconds, for replay, but go sooner, oldest first, when
    the journal comes near `size` bytes. At `size` appends wait. The write-ahead log, 16 to 64 MiB beside the
    database, is not counted.
    """

    age: float = 3 * 86400.0
    size: int = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How the journal stands. `lag`: for each open handler, the events that it has not finished with, at most.

    `write_error` is what the disk says while it refuses, `full` whether appends wait for room.
    """

    end: int
    size: int
    limit: int
    full: bool
    write_error: str | None
    waiting: int
    lag: Mapping[str, int]


class Reader(Protocol):
    """One handler's way through the journal. It belongs to one task; acknowledgements may come from any."""

    @property
    def handler(self) -> str: ...

    @property
    def unfinished(self) -> int:
        """How many events were read and not acknowledged."""

    @property
    def lag(self) -> int:
        """How many events the handler has not finished with, at most: its filter may pass some of them over."""

    async def read(self, limit: int) -> list[Entry]:
        """The next events, `limit` at most, none of them twice. Waits until there is one in the journal.

        Returns nothing when what was there has been passed over: then `lag` has changed.
        From memory while the handler keeps up, else from the disk. Raises JournalError if the journal is damaged.
        """

    def acknowledge(self, positions: Iterable[int]) -> None:
        """The handler has finished with these. Durable within a fraction of a second; never waits."""

    async def dead_letter(
        self, entries: Sequence[Entry], *, reason: str, traceback: str = "", attempts: int = 1
    ) -> None:
        """Puts events among the dead letters together, and acknowledges them. Returns when that is durable."""


class Journal(Protocol):
    """The journal. Every call that writes returns when that is durable; none blocks the loop."""

    @property
    def figures(self) -> Figures: ...

    @property
    def idle(self) -> float:
        """Seconds since the disk last answered, be it that it refused: a few at most, unless something hangs."""

    async def append(self, events: Sequence[MailboxEvent], changes: Sequence[Change] = ()) -> None:
        """Writes events and state together. Waits while the journal is full or its disk refuses.

        Without events it does not wait for room. If it is cancelled, it is not said whether it was written.
        """

    async def reader(self, handler: str, wants: Callable[[MailboxEvent], bool] | None = None) -> Reader:
        """Opens the handler's way through the journal, where it stood. One reader a handler.

        What `wants` refuses is passed over and counts as acknowledged.
        """

    async def release(self, handler: str) -> None:
        """Ends the handler's way through the journal; another reader may then go on from where it stood.

        Waits for no disk. Its own reader must not be used any more. A handler without a reader is no error.
        """

    async def load(self, namespace: str, prefix: str = "") -> dict[str, bytes]:
        """The saved state in a namespace whose keys begin so, in the order of the keys."""

    async def forget(self, namespace: str, others: Collection[str], before: float) -> list[str]:
        """Removes the saved state of all owners but these, if nothing of theirs was written since a Unix time.

        An owner is what stands in keys in front of OWNED. Returns who was forgotten.
        """

    def recent(self, since: float, most: int) -> AsyncGenerator[Sequence[MailboxEvent], None]:
        """What was journaled since a Unix time and before this call, in its order, some at a time: the last `most`
        events or a few more, each once, whatever its handlers did with it."""

    async def dead_letters(
        self, handler: str | None = None, *, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """Dead letters with higher numbers than `after`, oldest first."""

    async def dead_letter(self, number: int) -> DeadLetter | None: ...

    async def retry(self, numbers: Sequence[int]) -> int:
        """Gives dead letters back to their handlers, as new entries at the end. Returns how many there were."""

    async def discard(self, numbers: Sequence[int]) -> int:
        """Deletes dead letters. Returns how many there were."""

    async def replay(self, handler: str, since: float, mailbox: str | None = None) -> int:
        """Gives a handler again what was journaled since a Unix time, as new entries at the end, in their order.

        Returns how many events that are (before the handler's filter). Raises JournalError if no handler of this
        name was ever opened. `mailbox` is an address, whatever its case.
        """

    async def flush(self) -> None:
        """Returns when every acknowledgement up to now is durable."""
