"""The journal's writer: one task collects the writes of all callers and commits them together, in a thread.

This is a group commit without an artificial delay: calls made during a commit join the next one. Acknowledgements
are written with a commit, or cause one after LINGER seconds. While the disk fails, the writer retries everything.
While the journal is full, events wait.
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
from listener.journal.store import DiskError, OffsetRow, Refused, Store, Write, Written
from listener.journal.tail import Tail

log = structlog.get_logger()

RunSync: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a function with arguments where it may block, such as `trio.to_thread.run_sync`."""

RETRY: Final = Backoff(first=0.1, factor=2.0, cap=10.0)
LINGER: Final = 0.05
"""The most seconds that an acknowledgement waits for a commit."""
_POLL: Final = 1.0  # seconds between checks whether another process has appended events
_SWEEP: Final = 30.0  # seconds between steps of retention
_SWEEP_CROWDED: Final = 0.1  # the same, while the journal is nearly full
_SEEN: Final = 3600.0  # seconds between updates of the time at which each open handler was last seen
_ABSENT_GRACE: Final = 600.0  # seconds after the start in which no handler counts as absent
_MOST_EVENTS: Final = 5000  # per commit


class TrackedReader(Protocol):
    """A handler's reader whose offset the writer stores."""

    @property
    def handler(self) -> str: ...
    @property
    def lag(self) -> int: ...
    def offset(self) -> OffsetRow: ...


@dataclass(eq=False, slots=True)
class _Job:
    write: Write
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: BaseException | None = None
    abandoned: bool = False


class Writer:
    """Owner of the store while run() runs.

    `readers` are the open handlers by name. `tail` has the newest events; readers wait for more at `arrivals`. The
    other attributes are for monitoring: `used` bytes, whether the journal is `full`, the disk's `write_error` while
    it fails, and the number of `waiting` appends.
    """

    def __init__(
        self,
        store: Store,
        keep: Retention,
        tail: Tail,
        used: int,
        now: Callable[[], float],
        run_sync: RunSync,
    ) -> None:
        self.readers: dict[str, TrackedReader] = {}
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
        self._changed: dict[TrackedReader, None] = {}
        self._save_at = 0.0
        self._wake = trio.Event()
        self._closing = trio.Event()
        self._failures = 0
        self._failing_since = 0.0
        # No other process can append to a journal in memory.
        self._poll = _POLL if store.path else math.inf
        self._opened_at = self._polled_at = self._seen_at = self._cycled_at = trio.current_time()
        self._sweep_at = self._opened_at + _SWEEP_CROWDED

    @property
    def waiting(self) -> int:
        return len(self._appends)

    @property
    def idle(self) -> float:
        """Seconds since the last cycle ended."""
        return trio.current_time() - self._cycled_at

    async def write(self, write: Write) -> Any:
        """Return the result of the write's `work` when it is durable. Raises the error of an invalid write."""
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
        """Return when every change up to now is durable."""
        self._save_at = trio.current_time()
        await self.write(Write())

    def note_change(self, reader: TrackedReader, *, at_once: bool = False) -> None:
        """Schedule the reader's offset to be stored within LINGER seconds, or `at_once`. Never waits."""
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
        """Write until close(), then write what is left. If the disk fails then, do not retry."""
        try:
            with trio.CancelScope(shield=True):
                while not self._closing.is_set():
                    await self._pause()
                    await self._cycle()
                await self._finish()
        finally:
            self._closing.set()
            for job in (*self._others, *self._appends):
                job.error = JournalError("the journal is closed")
                job.done.set()

    async def _finish(self) -> None:
        while self._others or self._changed or (self._appends and not self.full):
            self._save_at = trio.current_time()
            await self._cycle()
            if self._failures:
                log.warning("journal.unwritten", handlers=[reader.handler for reader in self._changed])
                return

    async def _pause(self) -> None:
        """Wait until there is something to write, or until the next poll or sweep is due."""
        if self._failures:
            with trio.move_on_after(RETRY.longest(self._failures)):
                await self._closing.wait()
            return
        if self._others or (self._appends and not self.full):
            return
        due = min(trio.current_time() + self._poll, self._sweep_at)
        if self._changed:
            due = min(due, self._save_at)
        self._wake = trio.Event()
        with trio.move_on_at(due):
            await self._wake.wait()

    async def _cycle(self) -> None:
        jobs = self._take_jobs()
        changed = list(self._changed) if trio.current_time() >= self._save_at else []
        try:
            if jobs or changed:
                await self._transact(jobs, changed)
            elif trio.current_time() >= self._polled_at + self._poll:
                self._publish_end(self.tail.end + 1, (), await self._run_sync(self._store.read_end))
            if trio.current_time() >= self._sweep_at:
                await self._sweep()
        except DiskError as write_error:
            self._put_back(jobs)
            self._changed |= dict.fromkeys(changed)
            self._note_failure(str(write_error))
        except BaseException:
            self._put_back(jobs)  # run() ends the callers that wait for them
            raise
        else:
            self._note_success()
        self._cycled_at = trio.current_time()

    def _put_back(self, jobs: Sequence[_Job]) -> None:
        self._appends.extendleft(job for job in reversed(jobs) if job.write.events and _is_pending(job))
        self._others.extendleft(job for job in reversed(jobs) if not job.write.events and _is_pending(job))

    def _take_jobs(self) -> list[_Job]:
        jobs = [job for job in self._others if not job.abandoned]
        self._others.clear()
        events = 0
        while self._appends and not self.full and events < _MOST_EVENTS:
            job = self._appends.popleft()
            if not job.abandoned:
                jobs.append(job)
                events += len(job.write.events)
        return jobs

    async def _transact(self, jobs: list[_Job], changed: list[TrackedReader]) -> None:
        offsets = [reader.offset() for reader in changed]
        for reader in changed:
            self._changed.pop(reader)
        if changed:
            self._save_at = trio.current_time() + LINGER
        try:
            await self._write(jobs, offsets)
        except Refused:
            # Write each job alone, to find the invalid one. If all are invalid, the offsets are still unwritten.
            self._changed |= dict.fromkeys(changed)
            for job in jobs:
                try:
                    await self._write([job], offsets)
                except Refused as refused:
                    job.error = refused.__cause__
                    job.done.set()

    async def _write(self, jobs: list[_Job], offsets: list[OffsetRow]) -> None:
        writes = [job.write for job in jobs]
        written: Written = await self._run_sync(self._store.transact, writes, offsets, self._now())
        events = [event for write in writes for event in write.events]
        for job, result in zip(jobs, written.results, strict=True):
            job.result = result
            job.done.set()
        self._publish_end(written.first, events, written.end)
        self._measure(written.used)

    def _publish_end(self, first: int, events: Sequence[MailboxEvent], end: int) -> None:
        """Extend the tail to the new end of the journal, and wake the readers."""
        self._polled_at = trio.current_time()
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

    def _note_failure(self, reason: str) -> None:
        self._failures += 1
        if self.write_error is None:
            self._failing_since = trio.current_time()
        if self.write_error != reason:
            self.write_error = reason
            path = str(self._store.file)
            log.error("journal.write_failed", path=path, reason=reason, free=self._store.free())

    def _note_success(self) -> None:
        self._failures = 0
        if self.write_error is not None:
            self.write_error = None
            duration = round(trio.current_time() - self._failing_since, 1)
            log.info("journal.recovered", path=str(self._store.file), duration=duration)


def _is_pending(job: _Job) -> bool:
    return not job.done.is_set() and not job.abandoned
