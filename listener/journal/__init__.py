"""The journal: a durable log between the streams and the handlers, and state that must be consistent with it.

    async with open_journal(directory) as journal:                  # listener/journal/sqlite.py
        await journal.append(events, [Put("sync", key, state)])     # returns when both are durable
        reader = await journal.reader("audit")
        for position, event in await reader.read(500):
            ...
            reader.acknowledge([position])

Every implementation keeps these rules:

1. An event has a position, from 1, that only grows. Events of one mailbox have the order in which they were
   appended. Positions may have gaps.
2. After `append` has returned, its data survives a crash at any instruction. The events and changes of one call are
   stored together or not at all.
3. A reader returns every event that its handler wants, in order of position, until the event is acknowledged. After a
   crash some acknowledged events may be returned again; no unacknowledged event is skipped.
4. Acknowledgements may come in any order. The stored offset of a handler is the position it has read to, and the
   unfinished events up to there.
5. An event that a handler has not finished is never deleted. While the journal or its disk is full, appends wait.
6. A new handler starts at the end: it gets the events that are appended from then on. `replay` redelivers older ones.
   A handler that is no longer opened keeps its offset until that is older than `Retention.age`, or until the journal
   is full and only absent handlers prevent deletion.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from listener.errors import ListenerError
from listener.event import MailboxEvent


class JournalError(ListenerError):
    """The journal cannot continue because it is damaged, or the caller asked for something that does not exist."""


class JournalDamagedError(JournalError):
    """The database file is damaged. A restart fails in the same way until an operator has repaired or moved it."""


class Entry(NamedTuple):
    """An event and its position in the journal."""

    position: int
    event: MailboxEvent


OWNED = "\x1f"
"""Separates the owner (usually a mailbox) from the rest of a key of the stored state."""


class Put(NamedTuple):
    """Set a value of the stored state. Keys sort by code point; the caller encodes `value`."""

    namespace: str
    key: str
    value: bytes


class Drop(NamedTuple):
    """Remove a value of the stored state. A missing value is not an error."""

    namespace: str
    key: str


Change: TypeAlias = Put | Drop


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a handler did not accept. `time` is Unix time; `traceback` is empty if nothing was raised."""

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
    """How long events are stored, and how much space they may take.

    Events that all handlers have finished are stored for `age` seconds, for replay. They are deleted sooner, oldest
    first, when the journal approaches `size` bytes. At `size`, appends wait. The write-ahead log, an extra 16 to
    64 MiB, is not counted.
    """

    age: float = 3 * 86400.0
    size: int = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Status of the journal. `lag`: for each open handler, an upper bound of its unfinished events.

    `write_error`: the disk's error message while writes fail. `full`: whether appends wait for space.
    """

    end: int
    size: int
    limit: int
    full: bool
    write_error: str | None
    waiting: int
    lag: Mapping[str, int]


class Reader(Protocol):
    """One handler's reader. One task reads; any task may acknowledge."""

    @property
    def handler(self) -> str: ...

    @property
    def unfinished(self) -> int:
        """The number of events that were read and not acknowledged."""

    @property
    def lag(self) -> int:
        """Upper bound of the events that the handler has not finished; its filter may exclude some of them."""

    async def read(self, limit: int) -> list[Entry]:
        """Return the next events, at most `limit`, each only once. Wait until the journal has one.

        Returns an empty list if the filter excluded all new events: then `lag` has changed. Reads from memory while
        the handler keeps up, otherwise from the disk. Raises JournalError if the journal is damaged.
        """

    def acknowledge(self, positions: Iterable[int]) -> None:
        """Mark events as finished. Durable within a fraction of a second; never waits."""

    async def dead_letter(
        self, entries: Sequence[Entry], *, reason: str, traceback: str = "", attempts: int = 1
    ) -> None:
        """Move events to the dead-letter queue together, and acknowledge them. Return when that is durable."""


class Journal(Protocol):
    """The journal. Every call that writes returns when the data is durable; none blocks the event loop."""

    @property
    def figures(self) -> Figures: ...

    @property
    def idle(self) -> float:
        """Seconds since the disk last answered, even with an error. More than a few mean that something hangs."""

    async def append(self, events: Sequence[MailboxEvent], changes: Sequence[Change] = ()) -> None:
        """Write events and state together. Wait while the journal is full or its disk refuses writes.

        Without events it does not wait for space. After a cancellation it is unknown whether the data was written.
        """

    async def reader(self, handler: str, wants: Callable[[MailboxEvent], bool] | None = None) -> Reader:
        """Open a reader at the handler's offset. A handler can have one reader.

        Events for which `wants` returns False are skipped and count as acknowledged.
        """

    async def release(self, handler: str) -> None:
        """Close the handler's reader; another reader may then continue at its offset.

        Does not wait for the disk. Do not use the reader afterwards. A handler without a reader is not an error.
        """

    async def load(self, namespace: str, prefix: str = "") -> dict[str, bytes]:
        """Return the stored state of a namespace whose keys start with `prefix`, sorted by key."""

    async def forget(self, namespace: str, others: Collection[str], before: float) -> list[str]:
        """Remove the stored state of owners that are not in `others` and have no value written since `before`.

        An owner is the part of a key before OWNED. `before` is Unix time. Returns the removed owners.
        """

    def recent(self, since: float, most: int) -> AsyncGenerator[Sequence[MailboxEvent], None]:
        """Yield the events that were journaled since a Unix time and before this call, in order, in batches.

        Yields the last `most` events or a few more, each once, whether or not its handlers have finished it.
        """

    async def dead_letters(
        self, handler: str | None = None, *, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """Return dead letters with numbers above `after`, oldest first."""

    async def dead_letter(self, number: int) -> DeadLetter | None: ...

    async def requeue(self, numbers: Sequence[int]) -> int:
        """Requeue dead letters for their handlers, as new entries at the end. Return how many were found."""

    async def discard(self, numbers: Sequence[int]) -> int:
        """Delete dead letters. Return how many were found."""

    async def replay(self, handler: str, since: float, mailbox: str | None = None) -> int:
        """Redeliver to a handler what was journaled since a Unix time, as new entries at the end, in order.

        Returns the number of events, before the handler's filter. Raises JournalError if no handler of this name was
        ever opened. `mailbox` is an address; its case does not matter.
        """

    async def flush(self) -> None:
        """Return when every acknowledgement up to now is durable."""
