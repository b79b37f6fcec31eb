"""One handler's lane: its way through the journal, and the tasks that feed it from there. It is fenced.

Events of one mailbox come in their order, those of different mailboxes independently. An event is done with when the
handler has returned; when it failed as often as the configuration allows, or was rejected, it goes to the dead
letters. Until then it stays in the journal, whatever happens to this process.
"""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import structlog
import trio

from listener.backoff import Backoff
from listener.delivery.turns import Turns
from listener.errors import OpeningError, Problem
from listener.event import MailboxEvent
from listener.handler import BatchHandler, Handler, HandlerContext, Reject, Retry
from listener.journal import Entry, Journal, Reader
from listener.watching import Watching

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
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
class Lane:
    """One handler, its way through the journal and its tasks."""

    source: Source
    patience: Patience
    watching: Watching | None = None
    delivered: int = 0
    given_up: int = 0
    failures: int = 0  # of its context, in a row
    last_delivered: float | None = None  # Unix time
    opened: bool = False  # once at least
    _is_open: bool = False
    _calls: int = 0  # under way
    _leaving: bool = False
    _turns: Turns = field(default_factory=Turns)
    _reader: Reader | None = None
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
    def behind(self) -> int:
        """Events in the journal that the handler has not finished with, at most."""
        return 0 if self._reader is None else self._reader.behind

    def _is_finished(self) -> bool:
        """Whether finish() was called and nothing is left to do, or leave() and no call is under way."""
        if self._leaving and not self._calls:
            return True
        return self._finishing.is_set() and not self._turns and not self.behind

    def again(self) -> Lane:
        """A lane that goes on where this one was left."""
        lane = Lane(self.source, self.patience, self.watching, opened=True)
        lane.count_on(self)
        return lane

    def count_on(self, lane: Lane) -> None:
        """What that one has counted is counted on."""
        self.delivered, self.given_up, self.last_delivered = (
            lane.delivered,
            lane.given_up,
            lane.last_delivered,
        )

    def tell_end(self) -> None:
        """Tells the log what became of its events."""
        account = {"delivered": self.delivered, "given_up": self.given_up, "behind": self.behind}
        log.info("handler.stopped", handler=self.name, **account)

    async def run(
        self, journal: Journal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Opens the handler and feeds it until finish() or leave(); one whose context breaks is opened again.

        Raises OpeningError if it cannot be opened the first time, unless it was `opened` before.
        """
        self._reader = await journal.reader(self.name, self.source.accepts.matches)
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
                    log.info("handler.started", handler=name, behind=self.behind)
                    self._is_open = True
                    if not self.opened:
                        self.opened = True
                        task_status.started()
                    await self._feed(handler, reader)
            except Exception as error:  # the fence: a plugin's trouble is its own
                if not self.opened:
                    why = f"could not be opened: {_describe(error)}"
                    raise OpeningError([Problem(f"handlers.{name}", why)]) from error
                self.failures = 1 if self.delivered > delivered else self.failures + 1
                log.error("handler.broken", handler=name, failures=self.failures, exc_info=error)
            else:
                if self._is_finished():
                    break
                self.failures += 1
                log.error("handler.broken", handler=name, failures=self.failures)
            finally:
                self._is_open = False
            if self._is_finished():
                break
            with trio.CancelScope() as self._pause:
                await trio.sleep(self.patience.retry.longest(self.failures))

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
        with trio.move_on_after(self.patience.timeout + CLOSING) as patience:
            await self._end()
        if patience.cancelled_caught:
            log.error("handler.stuck", handler=self.name, seconds=CLOSING)
            self._life.cancel()
            await self._ended.wait()

    async def _end(self) -> None:
        self._wake()
        self._pause.cancel()
        await self._ended.wait()

    # --- feeding one opened handler

    async def _feed(self, handler: Handler | BatchHandler, reader: Reader) -> None:
        """Returns when finish() was called and nothing is left to do."""
        self._turns.start_over()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, reader)
            nursery.start_soon(self._wake_in_time)
            if isinstance(handler, BatchHandler):
                nursery.start_soon(self._work_in_batches, handler, reader)
            else:
                for _ in range(self.patience.concurrency):
                    nursery.start_soon(self._work, handler, reader)
            while not self._is_finished():
                await self._change.wait()
            nursery.cancel_scope.cancel()

    async def _read(self, reader: Reader) -> None:
        while True:
            room = self.patience.queue - len(self._turns)
            if room > 0:
                self._turns.put(await reader.read(min(room, AT_A_TIME)))
                self._wake()
            else:
                await self._change.wait()

    async def _wake_in_time(self) -> None:
        """Gives those their turn whose time to be tried again has come."""
        while True:
            due = self._turns.next_due
            with trio.CancelScope(deadline=float("inf") if due is None else due):
                await self._change.wait()
            if self._turns.wake(trio.current_time()):
                self._wake()

    async def _work(self, handler: Handler, reader: Reader) -> None:
        """One call at a time, an event each."""
        for count in itertools.count(1):
            while (turn := None if self._leaving else self._turns.take()) is None:
                await self._change.wait()
            entry, tried = turn
            with self._calling():
                again = await self._attempt(handler, entry.event, [entry], tried + 1, reader)
            if again is None:
                self._turns.next_in(entry.event.mailbox)
            else:
                self._turns.wait(entry, trio.current_time() + again.seconds, tried=again.counts)
            if again is not None or not self._turns or count % FAIR == 0:
                self._wake()
                # A handler that never waits for anything would keep everybody else out.
                await trio.lowlevel.checkpoint()

    async def _work_in_batches(self, handler: BatchHandler, reader: Reader) -> None:
        """One call at a time, as many events as there are, up to what the handler takes."""
        while True:
            while self._leaving or not self._turns:
                await self._change.wait()
            with trio.move_on_after(getattr(handler, "max_wait", 0.0)):
                while len(self._turns) < handler.max_batch and not self._finishing.is_set():
                    await self._change.wait()
            batch = self._turns.take_batch(handler.max_batch)
            events = [entry.event for entry in batch]
            attempt = 1
            while True:
                with self._calling():
                    again = await self._attempt(handler.handle_batch, events, batch, attempt, reader)
                if again is None:
                    break
                attempt += again.counts
                await trio.sleep(again.seconds)
            for mailbox in dict.fromkeys(event.mailbox for event in events):
                self._turns.next_in(mailbox)
            self._wake()
            await trio.lowlevel.checkpoint()

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
        try:
            with trio.move_on_after(self.patience.timeout) as patience:
                await call(what)
            if not patience.cancelled_caught:
                reader.acknowledge([entry.position for entry in entries])
                self.delivered += len(entries)
                self.last_delivered = time.time()
                self._show(entries, "done", attempt)
                self._done(entries)
                return None
            reason = f"no answer in {self.patience.timeout:g} s"
            self._tell("handler.timeout", entries, attempt, seconds=self.patience.timeout)
        except Exception as error:  # noqa: BLE001  (the fence)
            match _wish(error):
                case Retry() as again:
                    after, counts, reason = again.after, again.counts, str(again) or "asked to be tried again"
                    self._tell("handler.retry", entries, attempt, reason=str(again))
                case Reject() as rejected:
                    self._tell("handler.rejected", entries, attempt, reason=str(rejected))
                    await self._bury(entries, str(rejected) or "rejected", "", attempt, reader)
                    return None
                case _:
                    reason = _describe(error)
                    trace = "".join(traceback.format_exception(error))
                    self._tell("handler.failed", entries, attempt, exc_info=error)
        if attempt < self.patience.attempts or not counts:
            self._show(entries, "failed", attempt, reason)
            return Again(self.patience.retry.longest(attempt) if after is None else after, counts)
        log.error("handler.gave_up", **self._about(entries), reason=reason)
        await self._bury(entries, reason, trace, attempt, reader)
        return None

    async def _bury(
        self, entries: list[Entry], reason: str, trace: str, attempts: int, reader: Reader
    ) -> None:
        self._show(entries, "given_up", attempts, reason)
        # A batch has the same trace in each of its letters; the end of it says where it was raised.
        await reader.bury(entries, reason=reason[:REASON], traceback=trace[-TRACE:], attempts=attempts)
        self.given_up += len(entries)
        self._done(entries)

    def _done(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._turns.done(entry)

    def _show(self, entries: list[Entry], result: str, attempt: int, reason: str = "") -> None:
        """Tells whoever watches a mailbox what became of its events."""
        if self.watching is None or not self.watching.on:
            return
        told = {"handler": self.name, "result": result, "attempt": attempt} | (
            {"reason": reason} if reason else {}
        )
        for entry in entries:
            event = entry.event
            about = {"type": event.type, "subject": event.subject, "recovered": event.recovered}
            self.watching.tell(event.mailbox, "delivery", **told, id=event.id, **about)

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

# Characters of a reason and of a traceback in a dead letter.
REASON, TRACE = 4096, 16384


def _wish(error: Exception) -> Exception:
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


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
