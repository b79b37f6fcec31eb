"""The journal's writer: one task gathers what everybody wants written and commits it, in a thread, at once.

Whoever calls while a commit is under way joins the next one: that is the group commit, without any delay of its own.
Acknowledgements go along with a commit, or make one when they have waited for LINGER seconds. While the disk refuses,
all is tried again; while the journal is full, events wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import structlog
import trio

from listener.backoff import Backoff
from listener.event import MailboxEvent
from listener.journal import JournalError, Retention, retention
from listener.journal.store import DiskError, Refused, Standing, Store, Write, Written
from listener.journal.tail import Tail

log = structlog.get_logger()

RunSync: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a function with arguments where it may block; `trio.to_thread.run_sync` is one."""

RETRY: Final = Backoff(first=0.1, factor=2.0, cap=10.0)
LINGER: Final = 0.05
_TICK: Final = 1.0
_SWEEP: Final = 30.0
_SWEEP_CROWDED: Final = 0.1
_SEEN: Final = 3600.0
_ABSENT_GRACE: Final = 600.0  # so long after the start no handler is taken for gone
_MOST_EVENTS: Final = 5000  # a commit


class Standee(Protocol):
    """A handler's way through the journal, as far as it is to be saved."""

    @property
    def handler(self) -> str: ...
    @property
    def lag(self) -> int: ...
    def standing(self) -> Standing: ...


@dataclass(eq=False, slots=True)
class _Job:
    write: Write
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: BaseException | None = None
    abandoned: bool = False


class Writer:
    """Owns the store while run() runs. `readers` are the open handlers by name; `tail` has the newest events, and
    `arrivals` those who wait for more. The rest is for whoever watches: bytes that are `used`, whether it is `full`,
    what the disk says while it refuses (`write_error`), and the calls that are `waiting`."""

    def __init__(
        self,
        store: Store,
        keep: Retention,
        tail: Tail,
        used: int,
        now: Callable[[], float],
        run_sync: RunSync,
    ) -> None:
        self.readers: dict[str, Standee] = {}
        self.tail = tail
        self.arrivals = trio.lowlevel.ParkingLot()
        self.used = used
        self.full = False
        self.write_error: str | None = None
        self._store = store
        self._keep = keep
        self._now = now
        self._run_sync = run_sync
        self._appends: deque[_Job] = deque()
        self._others: deque[_Job] = deque()
        self._changed: dict[Standee, None] = {}
        self._save_at = 0.0
        self._wake = trio.Event()
        self._closing = trio.Event()
        self._failures = 0
        self._failing_since = 0.0
        # What lives in memory is nobody else's: there is no need to look whether it has grown.
        self._tick = _TICK if store.path else math.inf
        self._opened_at = self._looked_at = self._seen_at = self._turned_at = trio.current_time()
        self._sweep_at = self._opened_at + _SWEEP_CROWDED

    @property
    def waiting(self) -> int:
        return len(self._appends)

    @property
    def idle(self) -> float:
        """Seconds since it last finished a turn."""
        return trio.current_time() - self._turned_at

    async def write(self, write: Write) -> Any:
        """Returns what the write's own work returned, when it is durable. Raises what is wrong with the write."""
        if self._closing.is_set():
            raise JournalError("the journal is closed")
        job = _Job(write)
        (self._appends if write.events else self._others).append(job)
        self._wake.set()
        try:
            await job.done.wait()
        finally:
            job.abandoned = True
        if job.error is not None:
            raise job.error
        return job.result

    async def flush(self) -> None:
        """Returns when every change up to now is durable."""
        self._save_at = trio.current_time()
        await self.write(Write())

    def note_change(self, reader: Standee, *, at_once: bool = False) -> None:
        """The reader's standing is to be saved: soon, or with the next commit. Never waits."""
        if at_once:
            self._save_at = trio.current_time()
            self._wake.set()
        elif not self._changed:
            self._save_at = max(self._save_at, trio.current_time() + LINGER)
            self._wake.set()
        self._changed[reader] = None

    def close(self) -> None:
        self._closing.set()
        self._wake.set()

    async def run(self) -> None:
        """Writes until it is closed, and what is left then; once, if the disk refuses."""
        try:
            with trio.CancelScope(shield=True):
                while not self._closing.is_set():
                    await self._pause()
                    await self._turn()
                await self._finish()
        finally:
            self._closing.set()
            for job in (*self._others, *self._appends):
                job.error = JournalError("the journal is closed")
                job.done.set()

    async def _finish(self) -> None:
        while self._others or self._changed or (self._appends and not self.full):
            self._save_at = trio.current_time()
            await self._turn()
            if self._failures:
                log.warning("journal.unwritten", handlers=[reader.handler for reader in self._changed])
                return

    async def _pause(self) -> None:
        """Waits until there is something to do, or it is time to look around."""
        if self._failures:
            with trio.move_on_after(RETRY.longest(self._failures)):
                await self._closing.wait()
            return
        if self._others or (self._appends and not self.full):
            return
        due = min(trio.current_time() + self._tick, self._sweep_at)
        if self._changed:
            due = min(due, self._save_at)
        self._wake = trio.Event()
        with trio.move_on_at(due):
            await self._wake.wait()

    async def _turn(self) -> None:
        jobs = self._take()
        changed = list(self._changed) if trio.current_time() >= self._save_at else []
        try:
            if jobs or changed:
                await self._transact(jobs, changed)
            elif trio.current_time() >= self._looked_at + self._tick:
                self._reach(self.tail.end + 1, (), await self._run_sync(self._store.look))
            if trio.current_time() >= self._sweep_at:
                await self._sweep()
        except DiskError as write_error:
            self._put_back(jobs)
            self._changed |= dict.fromkeys(changed)
            self._failed(str(write_error))
        except BaseException:
            self._put_back(jobs)  # run() tells those who wait
            raise
        else:
            self._works()
        self._turned_at = trio.current_time()

    def _put_back(self, jobs: Sequence[_Job]) -> None:
        self._appends.extendleft(job for job in reversed(jobs) if job.write.events and _waits(job))
        self._others.extendleft(job for job in reversed(jobs) if not job.write.events and _waits(job))

    def _take(self) -> list[_Job]:
        jobs = [job for job in self._others if not job.abandoned]
        self._others.clear()
        events = 0
        while self._appends and not self.full and events < _MOST_EVENTS:
            job = self._appends.popleft()
            if not job.abandoned:
                jobs.append(job)
                events += len(job.write.events)
        return jobs

    async def _transact(self, jobs: list[_Job], changed: list[Standee]) -> None:
        standings = [reader.standing() for reader in changed]
        for reader in changed:
            self._changed.pop(reader)
        if changed:
            self._save_at = trio.current_time() + LINGER
        try:
            await self._write(jobs, standings)
        except Refused:
            self._changed |= dict.fromkeys(changed)  # perhaps none of them can be written
            for job in jobs:
                try:
                    await self._write([job], standings)
                except Refused as refused:
                    job.error = refused.__cause__
                    job.done.set()

    async def _write(self, jobs: list[_Job], standings: list[Standing]) -> None:
        writes = [job.write for job in jobs]
        written: Written = await self._run_sync(self._store.transact, writes, standings, self._now())
        events = [event for write in writes for event in write.events]
        for job, result in zip(jobs, written.results, strict=True):
            job.result = result
            job.done.set()
        self._reach(written.first, events, written.end)
        self._measure(written.used)

    def _reach(self, first: int, events: Sequence[MailboxEvent], end: int) -> None:
        self._looked_at = trio.current_time()
        if end != self.tail.end:
            self.tail.extend(first, events, end)
            self.arrivals.unpark_all()

    async def _sweep(self) -> None:
        current = trio.current_time()
        if current >= self._seen_at + _SEEN:
            self._seen_at = current
            self._changed |= dict.fromkeys(self.readers.values())
        present = set(self.readers) if current >= self._opened_at + _ABSENT_GRACE else None
        more, forgotten, used = await self._run_sync(self._store.sweep, self._now(), present)
        for name in forgotten:
            log.warning("journal.handler_forgotten", handler=name)
        self._measure(used)
        if not more:
            crowded = used > self._keep.size * retention.HIGH_WATER
            self._sweep_at = trio.current_time() + (_SWEEP_CROWDED if crowded else _SWEEP)

    def _measure(self, used: int) -> None:
        self.used = used
        if used > self._keep.size * retention.HIGH_WATER:
            self._sweep_at = min(self._sweep_at, trio.current_time() + _SWEEP_CROWDED)
        if (full := used >= self._keep.size) == self.full:
            return
        self.full = full
        if full:
            slowest = max(self.readers.values(), key=lambda reader: reader.lag, default=None)
            log.error(
                "journal.full",
                path=str(self._store.file),
                size=used,
                limit=self._keep.size,
                slowest=slowest and slowest.handler,
                lag=slowest and slowest.lag,
            )
        else:
            log.info("journal.room", path=str(self._store.file), size=used)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self.write_error is None:
            self._failing_since = trio.current_time()
        if self.write_error != reason:
            self.write_error = reason
            path = str(self._store.file)
            log.error("journal.write_failed", path=path, reason=reason, free=self._store.free())

    def _works(self) -> None:
        self._failures = 0
        if self.write_error is not None:
            self.write_error = None
            duration = round(trio.current_time() - self._failing_since, 1)
            log.info("journal.recovered", path=str(self._store.file), duration=duration)


def _waits(job: _Job) -> bool:
    return not job.done.is_set() and not job.abandoned
