"""One handler's worker: its reader of the journal, and the tasks that call the handler.

Events of one mailbox are delivered in order, those of different mailboxes independently. An event is finished when
the handler has returned. It is moved to the dead-letter queue after `DeliveryLimits.attempts` failures, or when the
handler rejects it. Until then it stays in the journal, so that a crash of this process loses nothing.

Exceptions of the handler are isolated here: none of them reaches the daemon's own tasks.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

import structlog
import trio

from listener.backoff import Backoff
from listener.delivery.isolation import HANDLER, split_cancellation
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
    """Delivery limits for one handler.

    `queue`: events in memory. `concurrency`: simultaneous calls. `timeout`: seconds per call. `attempts`: calls per
    event before it is moved to the dead-letter queue. `retry`: delay between attempts.
    """

    queue: int = 10_000
    concurrency: int = 1
    timeout: float = 30.0
    attempts: int = 5
    retry: Backoff = Backoff(first=1.0, factor=2.0, cap=60.0)


class Accepts(Protocol):
    """A handler's filter."""

    def matches(self, event: MailboxEvent, /) -> bool: ...


class Source(Protocol):
    """The parts of a loaded handler that a worker uses; see `listener.plugins.LoadedHandler`."""

    @property
    def name(self) -> str: ...
    @property
    def accepts(self) -> Accepts: ...
    @property
    def open(self) -> Callable[[], HandlerContext]: ...


class State(Enum):
    """Life cycle of a worker.

    STARTING and BROKEN become RUNNING whenever the handler's context opens; RUNNING becomes BROKEN when it ends.
    DRAINING, STOPPING and STOPPED are never left for one of those.
    """

    STARTING = "starting"  # the context has not been opened, and no attempt has failed
    RUNNING = "running"  # the context is open
    BROKEN = "broken"  # the context failed or ended; the worker reopens it after a delay
    DRAINING = "draining"  # delivers what is in the journal, then stops
    STOPPING = "stopping"  # finishes the calls in progress, then stops; the rest stays in the journal
    STOPPED = "stopped"  # the context is closed


_ACTIVE = frozenset({State.STARTING, State.RUNNING, State.BROKEN})


class RetryDelay(NamedTuple):
    """When to call the handler again, and whether the failed call `counts` as one of the event's attempts."""

    seconds: float
    counts: bool


@dataclass(slots=True)
class Worker:
    """One handler with its reader of the journal and its tasks."""

    source: Source
    limits: DeliveryLimits
    tracing: Tracing | None = None
    delivered: int = 0
    dead_lettered: int = 0
    failures: int = 0  # consecutive failures of the handler's context
    last_delivered: float | None = None  # Unix time
    opened: bool = False  # the context was open at least once: later failures to open it are retried
    _state: State = State.STARTING
    _calls: int = 0  # in progress
    _queues: MailboxQueues = field(default_factory=MailboxQueues)
    _reader: Reader | None = None
    _filter_failed: set[str] = field(default_factory=set)  # ids of events for which the filter raised
    _journal_error: JournalError | None = None
    _in_flight: dict[int, tuple[list[Entry], int]] = field(
        default_factory=dict
    )  # by position: entries, attempt
    _changed: trio.Event = field(default_factory=trio.Event)
    _backoff_scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _run_scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def state(self) -> str:
        """The state as /status.json reports it: starting, running, broken or ending."""
        return self._state.value if self._state in _ACTIVE else "ending"

    @property
    def lag(self) -> int:
        """Upper bound of the events in the journal that the handler has not finished."""
        return 0 if self._reader is None else self._reader.lag

    def _is_finished(self) -> bool:
        """Return whether the worker can stop: nothing is left to drain, or no call is in progress while stopping."""
        if self._state is State.STOPPING:
            return not self._calls
        return self._state is State.DRAINING and not self._queues and not self.lag

    def reopened(self) -> Worker:
        """Return a worker for the same handler that continues at the offset of this one."""
        worker = Worker(self.source, self.limits, self.tracing, opened=True)
        worker.inherit_counters(self)
        return worker

    def inherit_counters(self, worker: Worker) -> None:
        """Continue the counters of a worker that this one replaces."""
        self.delivered, self.dead_lettered, self.last_delivered = (
            worker.delivered,
            worker.dead_lettered,
            worker.last_delivered,
        )

    def log_stopped(self) -> None:
        """Log `handler.stopped` with the counters."""
        counters = {"delivered": self.delivered, "dead_lettered": self.dead_lettered, "lag": self.lag}
        log.info("handler.stopped", handler=self.name, **counters)

    async def run(
        self, journal: Journal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Open the handler and deliver events until drain() or stop(). Reopen the handler when its context fails.

        Raises OpeningError if the first opening fails, unless `opened` was set, and JournalError if the journal is
        damaged.
        """
        HANDLER.set(self.name)
        self._reader = await journal.reader(self.name, self._wants)
        try:
            with self._run_scope:
                await self._run_until_stopped(self._reader, task_status)
        finally:
            self._state = State.STOPPED
            self._notify()

    async def _run_until_stopped(self, reader: Reader, task_status: trio.TaskStatus[None]) -> None:
        name = self.name
        while not self._is_finished():
            delivered = self.delivered
            try:
                async with self.source.open() as handler:
                    if isinstance(handler, BatchHandler):
                        _batch_limits(handler)
                    log.info("handler.started", handler=name, lag=self.lag)
                    self._set_active(State.RUNNING)
                    if not self.opened:
                        self.opened = True
                        task_status.started()
                    await self._feed(handler, reader)
            except BaseException as error:  # noqa: BLE001  (isolates the daemon from the plugin)
                # A damaged journal ends the daemon, even if the plugin's context replaced the exception.
                if self._journal_error is not None:
                    raise self._journal_error from None
                cancellation, failure = split_cancellation(error)
                if failure is not None:
                    self._record_crash(
                        failure,
                        made_progress=self.delivered > delivered,
                        cancelled=cancellation is not None,
                    )
                if cancellation is not None:
                    raise cancellation from None
                assert failure is not None
                await self._count_failed_attempts(failure, reader)
            else:
                if self._journal_error is not None:
                    raise self._journal_error
                if self._is_finished():
                    break
                self.failures += 1
                log.error("handler.crashed", handler=name, failures=self.failures)
            finally:
                self._set_active(State.BROKEN)
            if self._is_finished():
                break
            with trio.CancelScope() as self._backoff_scope:
                await trio.sleep(self.limits.retry.longest(self.failures))

    def _set_active(self, state: State) -> None:
        """Change the state, unless the worker was asked to stop."""
        if self._state in _ACTIVE:
            self._state = state

    def _record_crash(self, error: BaseException, *, made_progress: bool, cancelled: bool) -> None:
        """Count and log that the context raised. Raises OpeningError if the context was never open."""
        if not self.opened and not cancelled:
            why = f"could not be opened: {describe(error)}"
            raise OpeningError([Problem(f"handlers.{self.name}", why)]) from error
        self.failures = 1 if made_progress else self.failures + 1
        log.error("handler.crashed", handler=self.name, failures=self.failures, exc_info=error)

    async def _count_failed_attempts(self, error: BaseException, reader: Reader) -> None:
        """Count a failed attempt for each event whose call was in progress when the context failed."""
        in_flight, self._in_flight = list(self._in_flight.values()), {}
        for entries, attempt in in_flight:
            if attempt < self.limits.attempts:
                self._queues.count_attempt(entries)
            else:
                log.error("handler.dead_lettered", **self._log_fields(entries), reason=describe(error))
                await self._dead_letter(entries, describe(error), format_traceback(error), attempt, reader)

    def _wants(self, event: MailboxEvent) -> bool:
        """Apply the filter. If it raises, accept the event: each call of the handler then applies the filter first.

        So a failing filter is a failed attempt of the event, with the usual retries and the dead-letter queue.
        """
        try:
            return self.source.accepts.matches(event)
        except BaseException:  # noqa: BLE001  (raised again by the call, and logged there)
            self._filter_failed.add(event.id)
            return True

    async def drain(self) -> None:
        """Deliver what is in the journal, close the handler, and return when run() has ended."""
        if self._state in _ACTIVE:
            self._state = State.DRAINING
        await self._wait_stopped()

    async def stop(self) -> None:
        """Finish the calls in progress, close the handler, and return when run() has ended.

        Unfinished events stay in the journal for the next handler of this name. A handler that does not close within
        its call timeout and CLOSE_TIMEOUT is cancelled.
        """
        if self._state is not State.STOPPED:
            self._state = State.STOPPING
        with trio.move_on_after(self.limits.timeout + CLOSE_TIMEOUT) as scope:
            await self._wait_stopped()
        if scope.cancelled_caught:
            log.error("handler.close_timeout", handler=self.name, seconds=CLOSE_TIMEOUT)
            self._run_scope.cancel()
            await self._wait_stopped()

    async def _wait_stopped(self) -> None:
        self._notify()
        self._backoff_scope.cancel()
        while self._state is not State.STOPPED:
            await self._changed.wait()

    # --- feeding one open handler

    async def _feed(self, handler: Handler | BatchHandler, reader: Reader) -> None:
        """Call the handler until the worker can stop."""
        self._queues.reset()
        self._in_flight.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, reader)
            nursery.start_soon(self._wake_due)
            if isinstance(handler, BatchHandler):
                nursery.start_soon(self._work_in_batches, handler, reader)
            else:
                for _ in range(self.limits.concurrency):
                    nursery.start_soon(self._work, handler, reader)
            while not self._is_finished():
                await self._changed.wait()
            nursery.cancel_scope.cancel()

    async def _read(self, reader: Reader) -> None:
        while True:
            room = self.limits.queue - len(self._queues)
            if room > 0:
                try:
                    entries = await reader.read(min(room, READ_BATCH))
                except JournalError as error:
                    self._journal_error = error
                    raise
                self._queues.put(entries)
                self._notify()
            else:
                await self._changed.wait()

    async def _wake_due(self) -> None:
        """Return delayed events to the queue when their retry is due."""
        while True:
            due = self._queues.next_due
            with trio.CancelScope(deadline=float("inf") if due is None else due):
                await self._changed.wait()
            if self._queues.wake_due(trio.current_time()):
                self._notify()

    async def _work(self, handler: Handler, reader: Reader) -> None:
        """Call the handler with one event after the other."""
        for count in itertools.count(1):
            while (taken := None if self._state is State.STOPPING else self._queues.take()) is None:
                await self._changed.wait()
            entry, attempts = taken
            with self._calling():
                call = self._filtered(handler, entry) if self._filter_failed else handler
                delay = await self._attempt(call, entry.event, [entry], attempts + 1, reader)
            if delay is None:
                self._queues.release(entry.event.mailbox)
            else:
                self._queues.delay(entry, trio.current_time() + delay.seconds, counts=delay.counts)
            if delay is not None or not self._queues or count % CALLS_PER_YIELD == 0:
                self._notify()
                # A handler that never reaches a checkpoint would starve all other tasks.
                await trio.lowlevel.checkpoint()

    def _filtered(self, handler: Handler, entry: Entry) -> Handler:
        """Return a call that applies the filter first, for an event for which the filter raised before."""
        if entry.event.id not in self._filter_failed:
            return handler

        async def call(event: MailboxEvent) -> None:
            if self.source.accepts.matches(event):
                await handler(event)

        return call

    async def _work_in_batches(self, handler: BatchHandler, reader: Reader) -> None:
        """Call the handler with one batch after the other. A batch has the queued events, up to `max_batch`."""
        most, wait = _batch_limits(handler)
        while True:
            while self._state is State.STOPPING or not self._queues:
                await self._changed.wait()
            with trio.move_on_after(wait):
                while len(self._queues) < most and self._state is not State.DRAINING:
                    await self._changed.wait()
            # Batches of one while the filter raises for some event, so that the others do not fail with it.
            batch = self._queues.take_batch(1 if self._filter_failed else most)
            events = [entry.event for entry in batch]
            call = self._filtered_batch(handler, batch[0]) if self._filter_failed else handler.handle_batch
            attempt = 1 + max(map(self._queues.attempts, batch))
            while True:
                with self._calling():
                    delay = await self._attempt(call, events, batch, attempt, reader)
                if delay is None:
                    break
                attempt += delay.counts
                await trio.sleep(delay.seconds)
            for mailbox in dict.fromkeys(event.mailbox for event in events):
                self._queues.release(mailbox)
            self._notify()
            await trio.lowlevel.checkpoint()

    def _filtered_batch(
        self, handler: BatchHandler, entry: Entry
    ) -> Callable[[Sequence[MailboxEvent]], Awaitable[None]]:
        if entry.event.id not in self._filter_failed:
            return handler.handle_batch

        async def call(events: Sequence[MailboxEvent]) -> None:
            if all(map(self.source.accepts.matches, events)):
                await handler.handle_batch(events)

        return call

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Count a call and the processing of its result, so that stop() waits for both."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self._state is State.STOPPING:
                self._notify()

    async def _attempt(
        self,
        call: Callable[[T], Awaitable[None]],
        argument: T,
        entries: list[Entry],
        attempt: int,
        reader: Reader,
    ) -> RetryDelay | None:
        """Call the handler. Return None if the entries are finished, otherwise when to call it again."""
        after: float | None = None
        counts, trace = True, ""
        self._in_flight[entries[0].position] = entries, attempt
        try:
            with trio.move_on_after(self.limits.timeout) as scope:
                await call(argument)
            self._in_flight.pop(entries[0].position, None)
            if not scope.cancelled_caught:
                reader.acknowledge([entry.position for entry in entries])
                self.delivered += len(entries)
                self.last_delivered = time.time()
                self._trace(entries, "done", attempt)
                self._finish(entries)
                return None
            reason = f"no answer in {self.limits.timeout:g} s"
            self._log_warning("handler.timeout", entries, attempt, seconds=self.limits.timeout)
        except BaseException as error:  # noqa: BLE001  (isolates the daemon from the plugin)
            cancellation, failure = split_cancellation(error)
            if cancellation is not None:
                if failure is not None:
                    self._log_warning("handler.failed", entries, attempt, exc_info=failure)
                raise cancellation from None
            assert failure is not None
            self._in_flight.pop(entries[0].position, None)
            match _requested(failure):
                case Retry() as retry:
                    after, counts, reason = _delay(retry), retry.counts is not False, message(retry)
                    self._log_warning("handler.retry", entries, attempt, reason=reason)
                    reason = reason or "the handler requested a retry"
                case Reject() as rejection:
                    reason = message(rejection)
                    self._log_warning("handler.rejected", entries, attempt, reason=reason)
                    await self._dead_letter(entries, reason or "rejected", "", attempt, reader)
                    return None
                case _:
                    reason, trace = describe(failure), format_traceback(failure)
                    self._log_warning("handler.failed", entries, attempt, exc_info=failure)
        if attempt < self.limits.attempts or not counts:
            self._trace(entries, "failed", attempt, reason)
            return RetryDelay(self.limits.retry.longest(attempt) if after is None else after, counts)
        log.error("handler.dead_lettered", **self._log_fields(entries), reason=reason)
        await self._dead_letter(entries, reason, trace, attempt, reader)
        return None

    async def _dead_letter(
        self, entries: list[Entry], reason: str, trace: str, attempts: int, reader: Reader
    ) -> None:
        self._trace(entries, "dead_lettered", attempts, reason)
        # All dead letters of a batch have the same traceback.
        try:
            await reader.dead_letter(entries, reason=reason, traceback=trace, attempts=attempts)
        except JournalError as error:
            self._journal_error = error
            raise
        self.dead_lettered += len(entries)
        self._finish(entries)

    def _finish(self, entries: list[Entry]) -> None:
        if self._filter_failed:
            self._filter_failed.difference_update([entry.event.id for entry in entries])
        for entry in entries:
            self._queues.finish(entry)

    def _trace(self, entries: list[Entry], result: str, attempt: int, reason: str = "") -> None:
        """Report the result of a call to the clients of `ews-listener watch`."""
        if self.tracing is None or not self.tracing.on:
            return
        outcome = {"handler": self.name, "result": result, "attempt": attempt} | (
            {"reason": reason} if reason else {}
        )
        for entry in entries:
            event = entry.event
            about = {"type": event.type, "subject": event.subject, "recovered": event.recovered}
            self.tracing.emit(event.mailbox, "delivery", **outcome, id=event.id, **about)

    def _notify(self) -> None:
        """Wake every task that waits for `_changed`; each checks its own condition again."""
        self._changed.set()
        self._changed = trio.Event()

    def _log_fields(self, entries: list[Entry]) -> dict[str, object]:
        event = entries[0].event
        fields: dict[str, object] = {"handler": self.source.name, "id": event.id}
        fields |= {"mailbox": event.mailbox, "type": event.type}
        return fields if len(entries) == 1 else fields | {"batch": len(entries)}

    def _log_warning(self, name: str, entries: list[Entry], attempt: int, **fields: object) -> None:
        log.warning(name, **self._log_fields(entries), attempt=attempt, **fields)


# Most events in one read of the journal.
READ_BATCH = 500

# Calls after which a worker lets other tasks run.
CALLS_PER_YIELD = 50

# Seconds that a stopped handler may take to close after its last call.
CLOSE_TIMEOUT = 30.0


def _batch_limits(handler: BatchHandler) -> tuple[int, float]:
    """Return `max_batch` and `max_wait` of a handler. Raises ValueError if they are not valid."""
    most, wait = handler.max_batch, getattr(handler, "max_wait", 0.0)
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"max_batch must be an integer of at least 1, not {represent(most)[:100]}")
    if not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        raise ValueError(f"max_wait must be a number of seconds, not {represent(wait)[:100]}")
    return most, wait


def _delay(retry: Retry) -> float | None:
    """Return `retry.after`, or None if it is not a valid number of seconds."""
    after = retry.after
    return after if isinstance(after, int | float) and 0 <= after < math.inf else None


def _requested(error: BaseException) -> BaseException:
    """Return the first Retry or Reject of a nursery's exception group if all its exceptions are of that kind.

    Otherwise return the exception itself.
    """
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
