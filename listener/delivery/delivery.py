"""Hands what is in the journal to the handlers. One that raises, hangs or lags harms no other.

Each handler has a way of its own through the journal and is fed from it: events of one mailbox in their order, those
of different mailboxes independently. An event is done with when the handler has returned; when it failed as often as
the configuration allows, or was rejected, it goes to the dead letters. Until then it stays in the journal, whatever
happens to this process. Only so many events as `Patience.queue` says are in memory for a handler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from listener.delivery.lane import Accepts, Lane, Patience, Source
from listener.errors import OpeningError, Problem
from listener.event import MailboxEvent
from listener.journal import Journal

__all__ = ["Accepts", "Delivery", "Lane", "Patience", "Source"]


@dataclass(slots=True)
class Delivery:
    """All handlers together, and the journal that they are fed from while run() runs."""

    lanes: tuple[Lane, ...]
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
        """Opens all handlers, in order, then feeds them until drain(). Raises OpeningError as Lane.run() does."""
        self._journal = journal
        async with trio.open_nursery() as self._nursery:
            for lane in self.lanes:
                await self._nursery.start(lane.run, journal)
            task_status.started()
            await self._over.wait()

    async def change(self, lanes: Sequence[Lane]) -> None:
        """From now on these are the handlers; one of them that is a lane of ours goes on undisturbed.

        A handler that comes in place of one of its name takes up where that one stood. Raises OpeningError if one
        cannot be opened; then all is as it was, and those that had to make way are opened anew.
        """
        async with self._changing:
            await self._change(lanes)

    async def _change(self, lanes: Sequence[Lane]) -> None:
        before = {lane.name: lane for lane in self.lanes}
        new = [lane for lane in lanes if before.get(lane.name) is not lane]
        # Those that are altogether new come first: if one of them cannot be opened, nobody was disturbed.
        new.sort(key=lambda lane: lane.name in before)
        opened: list[Lane] = []
        try:
            for lane in new:
                if (old := before.get(lane.name)) is not None:
                    await self._leave(old)
                    lane.count_on(old)
                opened.append(lane)
                await self._open(lane)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._take_back(opened, before)
            raise
        self.lanes = tuple(lanes)
        for old in before.values():
            if old.name not in {lane.name for lane in lanes}:
                await self._leave(old)

    async def _take_back(self, opened: Sequence[Lane], before: Mapping[str, Lane]) -> None:
        """The last of those that were opened could not be."""
        for lane in opened[:-1]:
            await self._leave(lane)
        if self._over.is_set():
            return
        again = {lane.name: before[lane.name].again() for lane in opened if lane.name in before}
        self.lanes = tuple(again.get(lane.name, lane) for lane in self.lanes)
        assert self._nursery is not None
        assert self._journal is not None
        for lane in again.values():
            self._nursery.start_soon(lane.run, self._journal)

    async def _open(self, lane: Lane) -> None:
        assert self._nursery is not None, "handlers are changed while run() runs"
        assert self._journal is not None
        try:
            with trio.move_on_after(OPENING) as patience:
                await self._nursery.start(lane.run, self._journal)
            if patience.cancelled_caught:
                raise OpeningError([Problem(f"handlers.{lane.name}", f"is not open after {OPENING:g} s")])
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._journal.release(lane.name)
            raise

    async def _leave(self, lane: Lane) -> None:
        assert self._journal is not None
        # Nobody leaves by half: a lane that has been told to leave is of no use any more.
        with trio.CancelScope(shield=True):
            await lane.leave()
            await self._journal.release(lane.name)
        lane.tell_end()

    async def drain(self, grace: float) -> None:
        """Waits until the handlers have finished what is in the journal and are closed, `grace` seconds at most.

        What is left then stays in the journal for the next time.
        """
        with trio.move_on_after(grace):
            async with self._changing, trio.open_nursery() as nursery:
                for lane in self.lanes:
                    nursery.start_soon(lane.finish)
        for lane in self.lanes:
            lane.tell_end()
        self._over.set()


# Seconds that a handler may take to open while the daemon runs.
OPENING = 30.0
