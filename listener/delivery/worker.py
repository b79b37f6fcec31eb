"""One handler's worker: its way through the journal, and the tasks that feed it from there. It is fenced.

Events of one mailbox come in their order, those of different mailboxes independently. An event is done with when the
handler has returned; when it failed as often as the configuration allows, or was rejected, it goes to the dead
letters. Until then it stays in the journal, whatever happens to this process.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import structlog
import trio

from listener.backoff import Backoff
from listener.delivery.fence import HANDLER, divided
from listener.delivery.mailbox_queues import MailboxQueues
from listener.errors import OpeningError, Problem
from listener.event import MailboxEvent
from listener.handler import BatchHandler, Handler, HandlerContext, Reject, Retry
from listener.journal import Entry, Journal, JournalError, Reader
from listener.text import describe, format_traceback, message, represent
from listener.tracing import Tracing

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryLimits:
    """How much a handler may try ours: events in memory, calls side by side, seconds a call, tries an event, waits
    between them."""

    queue: int = 10_000
    concurrency: int = 1
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


class Again(NamedTuple):
    """Something is to be tried again in so many seconds; `counts`: it was a try."""

    seconds: float
    counts: bool


@dataclass(slots=True)
class Worker:
    """One handler, its way through the journal and its tasks."""

    source: Source
    limits: DeliveryLimits
    tracing: Tracing | None = None
    delivered: int = 0
    dead_lettered: int = 0
    failures: int = 0  # of its context, in a row
    last_delivered: float | None = None  # Unix time
    opened: bool = False  # once at least
    _is_open: bool = False
    _calls: int = 0  # under way
    _leaving: bool = False
    _queues: MailboxQueues = field(default_factory=MailboxQueues)
    _reader: Reader | None = None
    _doubtful: set[str] = field(default_factory=set)  # ids of events that the filter failed at
    _damage: JournalError | None = None
    _in_hand: dict[int, tuple[list[Entry], int]] = field(
        default_factory=dict
    )  # by position: entries, attempt
    _change: trio.Event = field(default_factory=trio.Event)
    _finishing: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)
    _pause: trio.CancelScope = field(default_factory=trio.CancelScope)
    _life: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def state(self) -> str:
        """One word for people: starting, running, broken or ending."""
        if self._leaving or self._finishing.is_set():
            return "ending"
        if self._is_open:
            return "running"
        return "broken" if self.failures else "starting"

    @property
    def lag(self) -> int:
        """Events in the journal that the handler has not finished with, at most."""
        return 0 if self._reader is None else self._reader.lag

    def _is_finished(self) -> bool:
        """Whether finish() was called and nothing is left to do, or leave() and no call is under way."""
        if self._leaving and not self._calls:
            return True
        return self._finishing.is_set() and not self._queues and not self.lag

    def again(self) -> Worker:
        """A worker that goes on where this one was left."""
        worker = Worker(self.source, self.limits, self.tracing, opened=True)
        worker.count_on(self)
        return worker

    def count_on(self, worker: Worker) -> None:
        """What that one has counted is counted on."""
        self.delivered, self.dead_lettered, self.last_delivered = (
            worker.delivered,
            worker.dead_lettered,
            worker.last_delivered,
        )

    def tell_end(self) -> None:
        """Tells the log what became of its events."""
        account = {"delivered": self.delivered, "dead_lettered": self.dead_lettered, "lag": self.lag}
        log.info("handler.stopped", handler=self.name, **account)

    async def run(
        self, journal: Journal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Opens the handler and feeds it until finish() or leave(); one whose context breaks is opened again.

        Raises OpeningError if it cannot be opened the first time, unless it was `opened` before, and JournalError if
        the journal is damaged.
        """
        HANDLER.set(self.name)
        self._reader = await journal.reader(self.name, self._wants)
        try:
            with self._life:
                await self._live(self._reader, task_status)
        finally:
            self._ended.set()

    async def _live(self, reader: Reader, task_status: trio.TaskStatus[None]) -> None:
        name = self.name
        while not self._is_finished():
            delivered = self.delivered
            try:
                async with self.source.open() as handler:
                    if isinstance(handler, BatchHandler):
                        _limits(handler)
                    log.info("handler.started", handler=name, lag=self.lag)
                    self._is_open = True
                    if not self.opened:
                        self.opened = True
                        task_status.started()
                    await self._feed(handler, reader)
            except BaseException as error:  # noqa: BLE001  (the fence: a plugin's trouble is its own)
                if self._damage is not None:  # whatever the plugin's context made of it
                    raise self._damage from None
                ours, theirs = divided(error)
                if theirs is not None:
                    self._note_broken(
                        theirs, made_progress=self.delivered > delivered, cancelled=ours is not None
                    )
                if ours is not None:
                    raise ours from None
                assert theirs is not None
                await self._blame(theirs, reader)
            else:
                if self._damage is not None:
                    raise self._damage
                if self._is_finished():
                    break
                self.failures += 1
                log.error("handler.crashed", handler=name, failures=self.failures)
            finally:
                self._is_open = False
            if self._is_finished():
                break
            with trio.CancelScope() as self._pause:
                await trio.sleep(self.limits.retry.longest(self.failures))

    def _note_broken(self, error: BaseException, *, made_progress: bool, cancelled: bool) -> None:
        """The context raised. Raises OpeningError if it was never open."""
        if not self.opened and not cancelled:
            why = f"could not be opened: {describe(error)}"
            raise OpeningError([Problem(f"handlers.{self.name}", why)]) from error
        self.failures = 1 if made_progress else self.failures + 1
        log.error("handler.crashed", handler=self.name, failures=self.failures, exc_info=error)

    async def _blame(self, error: BaseException, reader: Reader) -> None:
        """The context broke while calls were under way: that was a failed attempt at each of their events."""
        in_hand, self._in_hand = list(self._in_hand.values()), {}
        for entries, attempt in in_hand:
            if attempt < self.limits.attempts:
                self._queues.count(entries)
            else:
                log.error("handler.dead_lettered", **self._about(entries), reason=describe(error))
                await self._dead_letter(entries, describe(error), format_traceback(error), attempt, reader)

    def _wants(self, event: MailboxEvent) -> bool:
        """The filter. An event at which it fails is not passed over: each call of the handler then begins with it."""
        try:
            return self.source.accepts.matches(event)
        except BaseException:  # noqa: BLE001  (it fails again in the call, and is logged there)
            self._doubtful.add(event.id)
            return True

    async def finish(self) -> None:
        """Returns when the handler has finished what is in the journal and has been closed; run() is over by then."""
        self._finishing.set()
        await self._end()

    async def leave(self) -> None:
        """Returns when the calls that are under way have come to their end and the handler has been closed.

        What it has not finished stays in the journal, for whoever opens a handler of this name next. One that does
        not close in time is cancelled.
        """
        self._leaving = True
        with trio.move_on_after(self.limits.timeout + CLOSING) as patience:
            await self._end()
        if patience.cancelled_caught:
            log.error("handler.close_timeout", handler=self.name, seconds=CLOSING)
            self._life.cancel()
            await self._ended.wait()

    async def _end(self) -> None:
        self._wake()
        self._pause.cancel()
        await self._ended.wait()

    # --- feeding one opened handler

    async def _feed(self, handler: Handler | BatchHandler, reader: Reader) -> None:
        """Returns when finish() was called and nothing is left to do."""
        self._queues.start_over()
        self._in_hand.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, reader)
            nursery.start_soon(self._wake_in_time)
            if isinstance(handler, BatchHandler):
                nursery.start_soon(self._work_in_batches, handler, reader)
            else:
                for _ in range(self.limits.concurrency):
                    nursery.start_soon(self._work, handler, reader)
            while not self._is_finished():
                await self._change.wait()
            nursery.cancel_scope.cancel()

    async def _read(self, reader: Reader) -> None:
        while True:
            room = self.limits.queue - len(self._queues)
            if room > 0:
                try:
                    entries = await reader.read(min(room, AT_A_TIME))
                except JournalError as error:
                    self._damage = error
                    raise
                self._queues.put(entries)
                self._wake()
            else:
                await self._change.wait()

    async def _wake_in_time(self) -> None:
        """Gives those their turn whose time to be tried again has come."""
        while True:
            due = self._queues.next_due
            with trio.CancelScope(deadline=float("inf") if due is None else due):
                await self._change.wait()
            if self._queues.wake(trio.current_time()):
                self._wake()

    async def _work(self, handler: Handler, reader: Reader) -> None:
        """One call at a time, an event each."""
        for count in itertools.count(1):
            while (turn := None if self._leaving else self._queues.take()) is None:
                await self._change.wait()
            entry, tried = turn
            with self._calling():
                call = self._filtered(handler, entry) if self._doubtful else handler
                again = await self._attempt(call, entry.event, [entry], tried + 1, reader)
            if again is None:
                self._queues.next_in(entry.event.mailbox)
            else:
                self._queues.wait(entry, trio.current_time() + again.seconds, tried=again.counts)
            if again is not None or not self._queues or count % FAIR == 0:
                self._wake()
                # A handler that never waits for anything would keep everybody else out.
                await trio.lowlevel.checkpoint()

    def _filtered(self, handler: Handler, entry: Entry) -> Handler:
        """The handler, after the filter, for an event at which the filter failed before."""
        if entry.event.id not in self._doubtful:
            return handler

        async def call(event: MailboxEvent) -> None:
            if self.source.accepts.matches(event):
                await handler(event)

        return call

    async def _work_in_batches(self, handler: BatchHandler, reader: Reader) -> None:
        """One call at a time, as many events as there are, up to what the handler takes."""
        most, wait = _limits(handler)
        while True:
            while self._leaving or not self._queues:
                await self._change.wait()
            with trio.move_on_after(wait):
                while len(self._queues) < most and not self._finishing.is_set():
                    await self._change.wait()
            # One at a time while the filter fails at some: the others are not to blame.
            batch = self._queues.take_batch(1 if self._doubtful else most)
            events = [entry.event for entry in batch]
            call = self._filtered_batch(handler, batch[0]) if self._doubtful else handler.handle_batch
            attempt = 1 + max(map(self._queues.tried, batch))
            while True:
                with self._calling():
                    again = await self._attempt(call, events, batch, attempt, reader)
                if again is None:
                    break
                attempt += again.counts
                await trio.sleep(again.seconds)
            for mailbox in dict.fromkeys(event.mailbox for event in events):
                self._queues.next_in(mailbox)
            self._wake()
            await trio.lowlevel.checkpoint()

    def _filtered_batch(
        self, handler: BatchHandler, entry: Entry
    ) -> Callable[[Sequence[MailboxEvent]], Awaitable[None]]:
        if entry.event.id not in self._doubtful:
            return handler.handle_batch

        async def call(events: Sequence[MailboxEvent]) -> None:
            if all(map(self.source.accepts.matches, events)):
                await handler.handle_batch(events)

        return call

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Around a call of the handler and what follows it: who leaves waits for it."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self._leaving:
                self._wake()

    async def _attempt(
        self,
        call: Callable[[T], Awaitable[None]],
        what: T,
        entries: list[Entry],
        attempt: int,
        reader: Reader,
    ) -> Again | None:
        """Calls the handler. None: the entries are done with; else when they are to be tried again."""
        after: float | None = None
        counts, trace = True, ""
        self._in_hand[entries[0].position] = entries, attempt
        try:
            with trio.move_on_after(self.limits.timeout) as patience:
                await call(what)
            self._in_hand.pop(entries[0].position, None)
            if not patience.cancelled_caught:
                reader.acknowledge([entry.position for entry in entries])
                self.delivered += len(entries)
                self.last_delivered = time.time()
                self._show(entries, "done", attempt)
                self._done(entries)
                return None
            reason = f"no answer in {self.limits.timeout:g} s"
            self._tell("handler.timeout", entries, attempt, seconds=self.limits.timeout)
        except BaseException as error:  # noqa: BLE001  (the fence)
            ours, theirs = divided(error)
            if ours is not None:
                if theirs is not None:
                    self._tell("handler.failed", entries, attempt, exc_info=theirs)
                raise ours from None
            assert theirs is not None
            self._in_hand.pop(entries[0].position, None)
            match _spec(theirs):
                case Retry() as again:
                    after, counts, reason = _after(again), again.counts is not False, message(again)
                    self._tell("handler.retry", entries, attempt, reason=reason)
                    reason = reason or "asked to be tried again"
                case Reject() as rejected:
                    reason = message(rejected)
                    self._tell("handler.rejected", entries, attempt, reason=reason)
                    await self._dead_letter(entries, reason or "rejected", "", attempt, reader)
                    return None
                case _:
                    reason, trace = describe(theirs), format_traceback(theirs)
                    self._tell("handler.failed", entries, attempt, exc_info=theirs)
        if attempt < self.limits.attempts or not counts:
            self._show(entries, "failed", attempt, reason)
            return Again(self.limits.retry.longest(attempt) if after is None else after, counts)
        log.error("handler.dead_lettered", **self._about(entries), reason=reason)
        await self._dead_letter(entries, reason, trace, attempt, reader)
        return None

    async def _dead_letter(
        self, entries: list[Entry], reason: str, trace: str, attempts: int, reader: Reader
    ) -> None:
        self._show(entries, "dead_lettered", attempts, reason)
        # A batch has the same trace in each of its letters.
        try:
            await reader.dead_letter(entries, reason=reason, traceback=trace, attempts=attempts)
        except JournalError as error:
            self._damage = error
            raise
        self.dead_lettered += len(entries)
        self._done(entries)

    def _done(self, entries: list[Entry]) -> None:
        if self._doubtful:
            self._doubtful.difference_update([entry.event.id for entry in entries])
        for entry in entries:
            self._queues.done(entry)

    def _show(self, entries: list[Entry], result: str, attempt: int, reason: str = "") -> None:
        """Tells whoever watches a mailbox what became of its events."""
        if self.tracing is None or not self.tracing.on:
            return
        told = {"handler": self.name, "result": result, "attempt": attempt} | (
            {"reason": reason} if reason else {}
        )
        for entry in entries:
            event = entry.event
            about = {"type": event.type, "subject": event.subject, "recovered": event.recovered}
            self.tracing.emit(event.mailbox, "delivery", **told, id=event.id, **about)

    def _wake(self) -> None:
        """Whoever waits for anything to change looks again."""
        self._change.set()
        self._change = trio.Event()

    def _about(self, entries: list[Entry]) -> dict[str, object]:
        event = entries[0].event
        about: dict[str, object] = {"handler": self.source.name, "id": event.id}
        about |= {"mailbox": event.mailbox, "type": event.type}
        return about if len(entries) == 1 else about | {"batch": len(entries)}

    def _tell(self, name: str, entries: list[Entry], attempt: int, **fields: object) -> None:
        log.warning(name, **self._about(entries), attempt=attempt, **fields)


# Events that are read from the journal at a time, and those after which the others have their turn.
AT_A_TIME = 500
FAIR = 50

# Seconds that a handler has to close, after its last call, when it makes way for another.
CLOSING = 30.0


def _limits(handler: BatchHandler) -> tuple[int, float]:
    """`max_batch` and `max_wait` of a handler. Raises ValueError if they are no limits."""
    most, wait = handler.max_batch, getattr(handler, "max_wait", 0.0)
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"max_batch must be an integer of at least 1, not {represent(most)[:100]}")
    if not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        raise ValueError(f"max_wait must be a number of seconds, not {represent(wait)[:100]}")
    return most, wait


def _after(again: Retry) -> float | None:
    """The seconds that it asks for; None for what is no number of seconds."""
    after = again.after
    return after if isinstance(after, int | float) and 0 <= after < math.inf else None


def _spec(error: BaseException) -> BaseException:
    """What the handler raised: of a nursery's group in which all are Retry, or all Reject, the first."""
    if isinstance(error, ExceptionGroup):
        for kind in (Retry, Reject):
            matching, others = error.split(kind)
            if matching is not None and others is None:
                return next(_leaves(matching))
    return error


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
