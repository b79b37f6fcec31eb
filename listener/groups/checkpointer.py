"""Keeps in the journal what the groups have, so that the next process goes on with it.

A change is written a moment after it was made, together with those that came meanwhile; the times at which streams
were last heard are written now and then. A crash before that costs a few subscriptions, and a gap that is taken for a
little longer than it was. But of a mailbox of which nothing was written nobody would know that it was listened to: so
a group is kept before its stream is opened.
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
_HEARD = "heard"


class Source(Protocol):
    """What is kept (listener/groups/manager.py has it). Moments are seconds on trio's clock."""

    def record(self, name: str, /) -> GroupCheckpoint | None: ...

    def last_seen_by_group(self) -> tuple[dict[str, float], dict[str, float]]:
        """As LastSeen has it: of groups, and of mailboxes that are behind."""


class Checkpointer:
    """The saved groups of one journal. note() is to be called when anything changed about a group."""

    def __init__(self, journal: Journal, now: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._now = now
        self._changed: set[str] = set()
        self._written: dict[str, bytes] = {}
        self._news = trio.Event()
        self._writing = trio.Lock()

    def note(self, name: str) -> None:
        """Something changed about this group. Never waits."""
        self._changed.add(name)
        self._news.set()

    async def load(self) -> tuple[list[GroupCheckpoint], LastSeen]:
        """What the last process left. What cannot be read, because another version wrote it, is left out."""
        self._written = await self._journal.load(NAMESPACE)
        groups, heard = [], LastSeen()
        for key, value in self._written.items():
            try:
                if key == _HEARD:
                    heard = _finite(_DECODE_HEARD(value))
                else:
                    groups.append(_DECODE_GROUP(value))
                    self._changed.add(groups[-1].name)  # it may not have come to life again
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                log.warning("checkpoint.unreadable", key=key, reason=str(error))
        return groups, heard

    async def run(self, source: Source) -> None:
        """Write what changes, until it is cancelled."""
        while True:
            with trio.move_on_after(HEARD_EVERY):
                await self._news.wait()
                await trio.sleep(TOGETHER)
            await self.save(source)

    async def save_checkpoint(self, name: str, source: Source) -> None:
        """Return when the state of this group is durable."""
        async with self._writing:
            if name in self._changed:  # else it went with somebody else's
                await self._save(source)

    async def save(self, source: Source) -> None:
        """Write what has changed up to now, durably."""
        async with self._writing:
            await self._save(source)

    async def _save(self, source: Source) -> None:
        self._news = trio.Event()
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
            _HEARD, _ENCODE(LastSeen(groups=self._wall(groups), missing_since=self._wall(missing_since)))
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
        """Unix seconds, to a tenth: that is exact enough, and what did not change stays what it was.

        Rounded to the nearest: cut off, a moment that several processes pass on would drift away, by as much as what
        is cut off in each of them.
        """
        offset = self._now() - trio.current_time()
        return {name: round(moment + offset, 1) for name, moment in moments.items()}


def _finite(heard: LastSeen) -> LastSeen:
    """Raises ValueError where a moment is none."""
    if not all(map(isfinite, (*heard.groups.values(), *heard.missing_since.values()))):
        raise ValueError("a moment that is not finite")
    return heard


# Seconds in which changes gather before they are written, and those between two notes of what was last heard.
TOGETHER = 0.25
HEARD_EVERY = 15.0

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_GROUP = msgspec.msgpack.Decoder(GroupCheckpoint).decode
_DECODE_HEARD = msgspec.msgpack.Decoder(LastSeen).decode
