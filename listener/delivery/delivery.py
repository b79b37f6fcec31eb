"""Hands what is in the journal to the handlers. One that raises, hangs or lags harms no other.

Each handler has a way of its own through the journal and is fed from it: events of one mailbox in their order, those
of different mailboxes independently. An event is done with when the handler has returned; when it failed as often as
the configuration allows, or was rejected, it goes to the dead letters. Until then it stays in the journal, whatever
happens to this process. Only so many events as `DeliveryLimits.queue` says are in memory for a handler.
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
    """All handlers together, and the journal that they are fed from while run() runs."""

    workers: tuple[Worker, ...]
    _journal: Journal | None = None
    _nursery: trio.Nursery | None = None
    _over: trio.Event = field(default_factory=trio.Event)
    _changing: trio.Lock = field(default_factory=trio.Lock)

    async def publish(self, batch: Sequence[MailboxEvent]) -> None:
        """Writes a batch to the journal; returns when it is safe there. Waits for no handler."""
        assert self._journal is not None, "nothing is published before run() has started"
        await self._journal.append(batch)

    async def run(
        self, journal: Journal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Opens all handlers, in order, then feeds them until drain(). Raises OpeningError as Worker.run() does."""
        self._journal = journal
        async with trio.open_nursery() as self._nursery:
            for worker in self.workers:
                await self._nursery.start(worker.run, journal)
            task_status.started()
            await self._over.wait()

    async def change(self, workers: Sequence[Worker]) -> None:
        """From now on these are the handlers; one of them that is a worker of ours goes on undisturbed.

        A handler that comes in place of one of its name takes up where that one stood. Raises OpeningError if one
        cannot be opened; then all is as it was, and those that had to make way are opened anew.
        """
        async with self._changing:
            await self._change(workers)

    async def _change(self, workers: Sequence[Worker]) -> None:
        before = {worker.name: worker for worker in self.workers}
        new = [worker for worker in workers if before.get(worker.name) is not worker]
        # Those that are altogether new come first: if one of them cannot be opened, nobody was disturbed.
        new.sort(key=lambda worker: worker.name in before)
        opened: list[Worker] = []
        try:
            for worker in new:
                if (old := before.get(worker.name)) is not None:
                    await self._leave(old)
                    worker.count_on(old)
                opened.append(worker)
                await self._open(worker)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._take_back(opened, before)
            raise
        self.workers = tuple(workers)
        for old in before.values():
            if old.name not in {worker.name for worker in workers}:
                await self._leave(old)

    async def _take_back(self, opened: Sequence[Worker], before: Mapping[str, Worker]) -> None:
        """The last of those that were opened could not be."""
        for worker in opened[:-1]:
            await self._leave(worker)
        if self._over.is_set():
            return
        again = {worker.name: before[worker.name].again() for worker in opened if worker.name in before}
        self.workers = tuple(again.get(worker.name, worker) for worker in self.workers)
        assert self._nursery is not None
        assert self._journal is not None
        for worker in again.values():
            self._nursery.start_soon(worker.run, self._journal)

    async def _open(self, worker: Worker) -> None:
        assert self._nursery is not None, "handlers are changed while run() runs"
        assert self._journal is not None
        try:
            with trio.move_on_after(OPENING) as patience:
                await self._nursery.start(worker.run, self._journal)
            if patience.cancelled_caught:
                raise OpeningError([Problem(f"handlers.{worker.name}", f"is not open after {OPENING:g} s")])
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._journal.release(worker.name)
            raise

    async def _leave(self, worker: Worker) -> None:
        assert self._journal is not None
        # Nobody leaves by half: a worker that has been told to leave is of no use any more.
        with trio.CancelScope(shield=True):
            await worker.leave()
            await self._journal.release(worker.name)
        worker.tell_end()

    async def drain(self, grace: float) -> None:
        """Waits until the handlers have finished what is in the journal and are closed, `grace` seconds at most.

        What is left then stays in the journal for the next time.
        """
        with trio.move_on_after(grace):
            async with self._changing, trio.open_nursery() as nursery:
                for worker in self.workers:
                    nursery.start_soon(worker.finish)
        for worker in self.workers:
            worker.tell_end()
        self._over.set()


# Seconds that a handler may take to open while the daemon runs.
OPENING = 30.0
