"""Deliver the events of the journal to all handlers. A handler that raises, hangs or lags does not affect others.

Each handler has its own offset in the journal. Events of one mailbox are delivered in order, those of different
mailboxes independently. An event is finished when the handler has returned, or when it was moved to the dead-letter
queue. Until then it stays in the journal, so that a crash loses nothing. At most `DeliveryLimits.queue` events per
handler are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from listener.delivery.worker import Accepts, DeliveryLimits, Source, Worker
from listener.errors import OpeningError, Problem
from listener.event import MailboxEvent
from listener.journal import Journal

__all__ = ["Accepts", "Delivery", "DeliveryLimits", "Source", "Worker"]


@dataclass(slots=True)
class Delivery:
    """All handlers, and the journal that feeds them while run() runs."""

    workers: tuple[Worker, ...]
    _journal: Journal | None = None
    _nursery: trio.Nursery | None = None
    _drained: trio.Event = field(default_factory=trio.Event)
    _change_lock: trio.Lock = field(default_factory=trio.Lock)

    async def publish(self, batch: Sequence[MailboxEvent]) -> None:
        """Write a batch to the journal and return when it is durable. Does not wait for handlers."""
        assert self._journal is not None, "nothing is published before run() has started"
        await self._journal.append(batch)

    async def run(
        self, journal: Journal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Open all handlers in order, then deliver events until drain(). Raises OpeningError as Worker.run() does."""
        self._journal = journal
        async with trio.open_nursery() as self._nursery:
            for worker in self.workers:
                await self._nursery.start(worker.run, journal)
            task_status.started()
            await self._drained.wait()

    async def change(self, workers: Sequence[Worker]) -> None:
        """Replace the handlers. A worker that is already in `self.workers` continues without interruption.

        A new worker continues at the offset of the worker of the same name. Raises OpeningError if a handler cannot
        be opened; then the previous handlers stay, and those that were stopped are reopened.
        """
        async with self._change_lock:
            await self._change(workers)

    async def _change(self, workers: Sequence[Worker]) -> None:
        before = {worker.name: worker for worker in self.workers}
        new = [worker for worker in workers if before.get(worker.name) is not worker]
        # Open handlers with new names first: if one of them fails, no running handler was interrupted.
        new.sort(key=lambda worker: worker.name in before)
        opened: list[Worker] = []
        try:
            for worker in new:
                if (old := before.get(worker.name)) is not None:
                    await self._stop(old)
                    worker.inherit_counters(old)
                opened.append(worker)
                await self._open(worker)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._roll_back(opened, before)
            raise
        self.workers = tuple(workers)
        for old in before.values():
            if old.name not in {worker.name for worker in workers}:
                await self._stop(old)

    async def _roll_back(self, opened: Sequence[Worker], before: Mapping[str, Worker]) -> None:
        """Restore the previous handlers. The last worker of `opened` is the one that failed to open."""
        for worker in opened[:-1]:
            await self._stop(worker)
        if self._drained.is_set():
            return
        reopened = {worker.name: before[worker.name].reopened() for worker in opened if worker.name in before}
        self.workers = tuple(reopened.get(worker.name, worker) for worker in self.workers)
        assert self._nursery is not None
        assert self._journal is not None
        for worker in reopened.values():
            self._nursery.start_soon(worker.run, self._journal)

    async def _open(self, worker: Worker) -> None:
        assert self._nursery is not None, "handlers are changed while run() runs"
        assert self._journal is not None
        try:
            with trio.move_on_after(OPEN_TIMEOUT) as scope:
                await self._nursery.start(worker.run, self._journal)
            if scope.cancelled_caught:
                raise OpeningError([Problem(f"handlers.{worker.name}", f"not open after {OPEN_TIMEOUT:g} s")])
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._journal.release(worker.name)
            raise

    async def _stop(self, worker: Worker) -> None:
        assert self._journal is not None
        # Shielded, because a worker cannot be resumed once it was asked to stop.
        with trio.CancelScope(shield=True):
            await worker.stop()
            await self._journal.release(worker.name)
        worker.log_stopped()

    async def drain(self, grace: float) -> None:
        """Wait until the handlers have finished what is in the journal and are closed, `grace` seconds at most.

        Events that are unfinished then stay in the journal for the next start.
        """
        with trio.move_on_after(grace):
            async with self._change_lock, trio.open_nursery() as nursery:
                for worker in self.workers:
                    nursery.start_soon(worker.drain)
        for worker in self.workers:
            worker.log_stopped()
        self._drained.set()


# Seconds that a handler may take to open while the daemon runs.
OPEN_TIMEOUT = 30.0
