"""Hands events to handlers. Each has a queue and a task of its own: one that raises, hangs or lags harms no other.

A handler gets one event at a time, in the order in which they came. An event leaves the queue when the handler has
returned, has rejected it, or has failed with it as often as the configuration allows. Queues are bounded and live
in memory: what does not fit is not delivered to that handler, and the log says how much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from listener.backoff import Backoff
from listener.errors import ConfigError, Problem
from listener.event import MailboxEvent
from listener.handler import Handler, HandlerContext, Reject, Retry

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How much a handler may try ours: events that wait, seconds a call, tries an event, waits between them."""

    queue: int = 10_000
    timeout: float = 30.0
    attempts: int = 5
    retry: Backoff = Backoff(first=1.0, factor=2.0, cap=60.0)


class Accepts(Protocol):
    """A handler's filter."""

    def matches(self, event: MailboxEvent, /) -> bool: ...


class Source(Protocol):
    """What is needed of a loaded handler (listener/plugins.py makes them)."""

    @property
    def name(self) -> str: ...
    @property
    def accepts(self) -> Accepts: ...
    @property
    def open(self) -> Callable[[], HandlerContext]: ...


@dataclass(slots=True)
class Lane:
    """One handler, its queue and its task."""

    source: Source
    patience: Patience
    delivered: int = 0
    overflowed: int = 0
    given_up: int = 0
    _queue: deque[MailboxEvent] = field(default_factory=deque)
    _more: trio.Event = field(default_factory=trio.Event)
    _idle: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)
    _pause: trio.CancelScope = field(default_factory=trio.CancelScope)
    _finishing: trio.Event = field(default_factory=trio.Event)
    _overflowing: bool = False

    @property
    def waiting(self) -> int:
        """Events that the handler has not finished with."""
        return len(self._queue)

    def offer(self, batch: Sequence[MailboxEvent]) -> None:
        """Queues those of the batch that the handler wants."""
        matches = self.source.accepts.matches
        wanted = [event for event in batch if matches(event)]
        if not wanted:
            return
        room = self.patience.queue - len(self._queue)
        self._queue.extend(wanted[:room])
        self._more.set()
        if len(wanted) > room:
            self.overflowed += len(wanted) - room
            if not self._overflowing:
                self._overflowing = True
                log.error("handler.overflow", handler=self.source.name, queue=self.patience.queue)
        elif self._overflowing:
            self._overflowing = False
            log.warning("handler.overflow_ended", handler=self.source.name, not_delivered=self.overflowed)

    async def finish(self) -> None:
        """Returns when the queue is empty and the handler has been closed; run() is over by then."""
        while self._queue:
            self._idle = trio.Event()
            await self._idle.wait()
        self._finishing.set()
        self._more.set()
        self._pause.cancel()
        await self._ended.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Opens the handler and feeds it until finish(); a handler whose context breaks is opened again.

        Raises ConfigError if it cannot be opened the first time.
        """
        name, started, failures = self.source.name, False, 0
        while not self._finishing.is_set():
            delivered = self.delivered
            try:
                async with self.source.open() as handler:
                    log.info("handler.started", handler=name)
                    if not started:
                        started = True
                        task_status.started()
                    await self._feed(handler)
            except Exception as error:  # the fence: a plugin's trouble is its own
                if not started:
                    why = f"could not be opened: {_describe(error)}"
                    raise ConfigError([Problem(f"handlers.{name}", why)]) from error
                failures = 1 if self.delivered > delivered else failures + 1
                log.error("handler.broken", handler=name, failures=failures, exc_info=error)
            else:
                if self._finishing.is_set():
                    break
                failures += 1
                log.error("handler.broken", handler=name, failures=failures)
            with trio.CancelScope() as self._pause:
                await trio.sleep(self.patience.retry.longest(failures))
        self._ended.set()

    async def _feed(self, handler: Handler) -> None:
        while True:
            while self._queue:
                await self._deliver(handler, self._queue[0])
                self._queue.popleft()
                if self.delivered % FAIR == 0:
                    await trio.lowlevel.checkpoint()
            self._idle.set()
            if self._finishing.is_set():
                return
            self._more = trio.Event()
            await self._more.wait()

    async def _deliver(self, handler: Handler, event: MailboxEvent) -> None:
        for attempt in range(1, self.patience.attempts + 1):
            after = None
            try:
                with trio.move_on_after(self.patience.timeout) as patience:
                    await handler(event)
                if not patience.cancelled_caught:
                    self.delivered += 1
                    return
                self._tell("handler.timeout", event, attempt, seconds=self.patience.timeout)
            except Retry as again:
                after = again.after
                self._tell("handler.retry", event, attempt, reason=str(again))
            except Reject as rejected:
                self.given_up += 1
                self._tell("handler.rejected", event, attempt, reason=str(rejected))
                return
            except Exception as error:  # noqa: BLE001  (the fence)
                self._tell("handler.failed", event, attempt, exc_info=error)
            if attempt < self.patience.attempts:
                await trio.sleep(self.patience.retry.longest(attempt) if after is None else after)
        self.given_up += 1
        log.error(
            "handler.gave_up", handler=self.source.name, id=event.id, mailbox=event.mailbox, type=event.type
        )

    def _tell(self, name: str, event: MailboxEvent, attempt: int, **fields: object) -> None:
        about = {"handler": self.source.name, "id": event.id, "mailbox": event.mailbox, "type": event.type}
        log.warning(name, **about, attempt=attempt, **fields)


@dataclass(slots=True)
class Delivery:
    """All handlers together."""

    lanes: tuple[Lane, ...]

    async def publish(self, batch: Sequence[MailboxEvent]) -> None:
        """Queues a batch for every handler that wants it. Never waits for one."""
        for lane in self.lanes:
            lane.offer(batch)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Opens all handlers, in order, then feeds them until drain(). Raises ConfigError as Lane.run() does."""
        async with trio.open_nursery() as nursery:
            for lane in self.lanes:
                await nursery.start(lane.run)
            task_status.started()

    async def drain(self, grace: float) -> None:
        """Waits until the handlers have finished what is queued and are closed, `grace` seconds at most.

        What is left then ends when run() is cancelled.
        """
        with trio.move_on_after(grace):
            async with trio.open_nursery() as nursery:
                for lane in self.lanes:
                    nursery.start_soon(lane.finish)
        for lane in self.lanes:
            log.info(
                "handler.stopped",
                handler=lane.source.name,
                delivered=lane.delivered,
                given_up=lane.given_up,
                not_delivered=lane.overflowed + lane.waiting,
            )


# After so many events the others have their turn, for a handler that never waits for anything would keep them out.
FAIR = 50


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
