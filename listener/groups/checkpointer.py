"""Writes the checkpoints of groups to the journal, with which the next process continues.

Changes are written in batches, a moment after the first one. The moments when streams last worked are written at an
interval. A crash before that costs a few subscriptions, and a gap looks a little longer than it was. But a mailbox
without any checkpoint would have no known gap. So a group is written before its stream is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Protocol

import msgspec
import structlog
import trio

from listener.groups.checkpoint import GroupCheckpoint, LastSeen
from listener.journal import Change, Drop, Journal, Put

log = structlog.get_logger()

NAMESPACE = "subscriptions"
_GROUP = "group\x1f"
_LAST_SEEN = "last_seen"


class Source(Protocol):
    """The present state of the groups (listener/groups/manager.py). Moments are seconds on trio's clock."""

    def record(self, name: str, /) -> GroupCheckpoint | None: ...

    def last_seen_by_group(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return `groups` and `missing_since` of LastSeen."""


class Checkpointer:
    """The checkpoints in one journal. Call note() after each change of a group."""

    def __init__(self, journal: Journal, now: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._now = now
        self._changed: set[str] = set()
        self._written: dict[str, bytes] = {}
        self._noted = trio.Event()
        self._writing = trio.Lock()

    def note(self, name: str) -> None:
        """Note that this group has changed. Never waits."""
        self._changed.add(name)
        self._noted.set()

    async def load(self) -> tuple[list[GroupCheckpoint], LastSeen]:
        """Return the checkpoint of the last process, without entries that another version wrote unreadably."""
        self._written = await self._journal.load(NAMESPACE)
        groups, last_seen = [], LastSeen()
        for key, value in self._written.items():
            try:
                if key == _LAST_SEEN:
                    last_seen = _finite(_DECODE_LAST_SEEN(value))
                else:
                    groups.append(_DECODE_GROUP(value))
                    self._changed.add(groups[-1].name)  # the new process may not have this group
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                log.warning("checkpoint.unreadable", key=key, reason=str(error))
        return groups, last_seen

    async def run(self, source: Source) -> None:
        """Write changes until cancelled."""
        while True:
            with trio.move_on_after(LAST_SEEN_INTERVAL):
                await self._noted.wait()
                await trio.sleep(BATCH_DELAY)
            await self.save(source)

    async def save_checkpoint(self, name: str, source: Source) -> None:
        """Return when the state of this group is durable."""
        async with self._writing:
            if name in self._changed:  # otherwise another call has written it
                await self._save(source)

    async def save(self, source: Source) -> None:
        """Write all changes up to now; return when they are durable."""
        async with self._writing:
            await self._save(source)

    async def _save(self, source: Source) -> None:
        self._noted = trio.Event()
        names, self._changed = self._changed, set()
        try:
            await self._write(self._changes(names, source))
        except BaseException:
            self._changed |= names
            raise

    def _changes(self, names: Iterable[str], source: Source) -> Iterable[Change]:
        for name in sorted(names):
            record = source.record(name)
            yield from self._change(_GROUP + name, None if record is None else _ENCODE(record))
        groups, missing_since = source.last_seen_by_group()
        yield from self._change(
            _LAST_SEEN, _ENCODE(LastSeen(groups=self._wall(groups), missing_since=self._wall(missing_since)))
        )

    def _change(self, key: str, value: bytes | None) -> Iterable[Change]:
        if value == self._written.get(key):
            return
        if value is None:
            yield Drop(NAMESPACE, key)
        else:
            yield Put(NAMESPACE, key, value)

    async def _write(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        if not changes:
            return
        await self._journal.append((), changes)
        for change in changes:
            if isinstance(change, Put):
                self._written[change.key] = change.value
            else:
                self._written.pop(change.key, None)

    def _wall(self, moments: dict[str, float]) -> dict[str, float]:
        """Convert moments to Unix seconds, rounded to tenths so that an unchanged moment stays equal.

        They are rounded to the nearest, because truncation would shift a moment further with each process that
        passes it on.
        """
        offset = self._now() - trio.current_time()
        return {name: round(moment + offset, 1) for name, moment in moments.items()}


def _finite(last_seen: LastSeen) -> LastSeen:
    """Return the argument. Raises ValueError if a moment is infinite or not a number."""
    if not all(map(isfinite, (*last_seen.groups.values(), *last_seen.missing_since.values()))):
        raise ValueError("a moment is not finite")
    return last_seen


# Seconds from a change to its write, and between two writes of the moments when streams last worked.
BATCH_DELAY = 0.25
LAST_SEEN_INTERVAL = 15.0

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_GROUP = msgspec.msgpack.Decoder(GroupCheckpoint).decode
_DECODE_LAST_SEEN = msgspec.msgpack.Decoder(LastSeen).decode
