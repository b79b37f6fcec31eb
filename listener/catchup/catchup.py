"""Closes gaps: finds in the mailboxes what no stream told, after each gap and now and then without one.

    catch_up = CatchUp(routes=…, states=…, kinds=…)
    catch_up.subscribed(mailbox, new=True)  # from now on its changes are to be reported
    catch_up.gap(mailbox, since, reason)    # the stream of this mailbox is open again, and the server was heard on it
    catch_up.note(batch)                    # these events came on a stream and were handed on
    await catch_up.run()

The rules:

1. A mailbox is compared (reconcile.py) after each gap, which begins when its stream was last known to be
   well; so first the stream is open, then what is missing is looked for, and nothing falls between.
2. Without a gap it is swept: after `interval`, and when nothing happens in it, after twice as long each time, up to
   `idle_interval`. What a sweep finds, a stream that seemed to be well did not tell: `silent` hears of that mailbox.
3. The states that comparisons begin from are built in the background, a page at a time, without events.
4. A mailbox is worked on by one task at a time, and so many mailboxes side by side as configured. Failures are tried
   again with back-off: soon, or, of a mailbox that cannot be read, ever more seldom. A gap stays open until it is
   filled; a new one is joined to it, and begins where the earlier one did.
5. When a mailbox is subscribed for the first time, that moment is kept (Mark in knowledge.py): what is older is not
   reported as new. The first look at the mailbox comes later, or in another process.
6. A mailbox that has a subscription and for `interval` no stream is compared without one, every `interval`, for as
   long as that lasts: a proxy may hold streams back and let all else pass. The gap stays open, but from then on it
   begins with the last of these comparisons.

Moments are seconds on trio's clock.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import floor, inf
from typing import Literal, NamedTuple, Protocol, TypeAlias

import structlog
import trio

from listener.backoff import Backoff
from listener.catchup.delay_queue import DelayQueue
from listener.catchup.history import DeliveryHistory, report_key
from listener.catchup.paging import Progress
from listener.catchup.queries import MailboxRoute, Queries
from listener.catchup.resync import SKEW, Resync
from listener.catchup.snapshots import (
    FolderError,
    Kept,
    Known,
    Mark,
    States,
    build_page,
    encoded,
    load_known,
    stored_folders,
)
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure, Verdict

__all__ = ["NO_OBSERVER", "CatchUp", "MailboxRoute", "Mode", "Observer", "Routes", "States"]

log = structlog.get_logger()

Mode: TypeAlias = Literal["sync", "signal", "off"]


@dataclass(slots=True)
class Gap:
    """A time without a stream, and why. `since` None: it is not known. `before`: the gap was there when this process
    began, and since when is not known of all of it. `told`: handlers know. `heard`: when the last event came before
    it."""

    since: float | None
    reasons: dict[str, None]
    before: bool = False
    told: bool = False
    heard: float = -inf

    def joined(self, later: Gap | None) -> Gap:
        """Both gaps as one."""
        if later is None:
            return self
        moments = [since for since in (self.since, later.since) if since is not None]
        told = self.told and not later.reasons.keys() - self.reasons.keys()
        before = self.before or later.before
        heard = min(self.heard, later.heard)
        return Gap(min(moments, default=None), self.reasons | later.reasons, before, told, heard)


class Skip(NamedTuple):
    """A folder is not asked for its first state until then, which was put off for so many seconds."""

    until: float
    delay: float


@dataclass(slots=True)
class MailboxState:
    """What goes on with one mailbox."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    gap: Gap | None = None
    filling: Gap | None = None
    failures: int = 0
    pace: float = 0.0
    traffic: bool = False
    heard: float = -inf  # when a stream last brought an event
    finds: int = 0  # sweeps in a row that found something
    first: float = -inf  # when it had been looked at for the first time
    compared: float = -inf  # when the last comparison began that came to its end
    build_failures: int = 0
    start: float | None = None  # of its first subscription: the mark that it will have, if it has none
    without: float = inf  # since when it was seen to have no stream
    alone: float = -inf  # when the last comparison without a stream began
    alone_failures: int = 0
    paced_until: float = -inf  # when it may be compared again for a reason that is PACED
    reported: set[tuple[str | None, ...]] = field(default_factory=set)  # without a stream, by report_key()
    skipped: dict[str, Skip] = field(default_factory=dict)  # by folder
    listings: dict[str, Progress] = field(default_factory=dict)  # of first states, by folder


class Routes(Protocol):
    """How to reach mailboxes, and what to do about those that catch-up found (listener/groups/runners.py does)."""

    def route(self, mailbox: str) -> MailboxRoute | None:
        """Return how to send requests about a mailbox; None while it has no stream."""

    def route_without_stream(self, mailbox: str) -> MailboxRoute | None:
        """Return how to send requests about a mailbox, with or without a stream; None while that is impossible."""

    def renew(self, mailbox: str) -> None:
        """Replace the subscription of a mailbox whose stream holds events back."""

    def check_access(self, mailbox: str, failure: Failure) -> None:
        """Find out whether a mailbox can still be read, because a comparison was denied."""


class Observer:
    """Watches gaps and comparisons, for tests and the demo. Moments are on trio's clock. This one does nothing."""

    def gap(self, mailbox: str, since: float | None) -> None:
        """A mailbox was without a working stream since that moment (None: unknown), and has one again."""

    def compared(self, mailbox: str, started_at: float) -> None:
        """A comparison of a mailbox, which began at that moment, has ended."""


NO_OBSERVER = Observer()


@dataclass(slots=True, kw_only=True)
class CatchUp:
    """All mailboxes' gaps and sweeps.

    `initial` is the start of the backfill for a mailbox that is subscribed for the first time: seconds before the
    subscription, or a moment; None: no backfill. `kinds` are the subscribed event types, without their prefix. After
    a start, the first comparisons are spread over `start_spread`; moments before `started_at` are from an earlier
    process. A sweep waits `grace`, and a catch-up `settle`, for events that a stream brings late. Durations are in
    seconds. Counters: `gaps` that were reported, events that were `recovered`, changes that a stream should have
    reported and did not (`missed`), and `requests` without those for first snapshots.
    """

    routes: Routes
    states: States
    kinds: frozenset[str]
    mode: Mode = "sync"
    initial: float | datetime | None = None
    interval: float = 900.0
    idle_interval: float = 7200.0
    start_spread: float = 0.0
    started_at: float = -inf
    settle: float = 2.0
    grace: float = 10.0
    concurrency: int = 4
    sweepers: int = 2
    builders: int = 1
    backoff: Backoff = Backoff(first=2.0, factor=2.0, cap=300.0)
    observer: Observer = field(default_factory=lambda: NO_OBSERVER)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    rng: random.Random = field(default_factory=random.Random)
    delivered: DeliveryHistory = field(default_factory=DeliveryHistory)
    gaps: int = 0
    recovered: int = 0
    missed: int = 0
    requests: int = 0
    _mailbox_states: dict[str, MailboxState] = field(init=False, default_factory=dict)
    _open: set[str] = field(init=False, default_factory=set)
    _gaps: DelayQueue = field(init=False)
    _sweeps: DelayQueue = field(init=False)
    _builds: DelayQueue = field(init=False)
    _marks: DelayQueue = field(init=False)
    _is_without: bool = field(init=False, default=False)  # and the log says so

    def __post_init__(self) -> None:
        self._gaps, self._sweeps, self._builds, self._marks = (
            DelayQueue(),
            DelayQueue(),
            DelayQueue(),
            DelayQueue(),
        )

    def reconfigure(self, *, interval: float, idle_interval: float, initial: float | datetime | None) -> None:
        """Use these from the next sweep, and for the next new mailbox, on."""
        self.interval, self.idle_interval, self.initial = interval, idle_interval, initial

    async def stored_folders(self, mailbox: str) -> set[str]:
        """Return the folder ids that are stored for a mailbox."""
        return await stored_folders(self.states, mailbox)

    @property
    def open_gaps(self) -> int:
        """How many mailboxes have a gap that is not filled."""
        return len(self._open)

    def lagging(self, moment: float) -> int:
        """How many mailboxes have an open gap, or were not compared since that moment."""
        return sum(
            mailbox_state.compared < moment or mailbox in self._open
            for mailbox, mailbox_state in self._mailbox_states.items()
        )

    def unfilled(self) -> dict[str, float]:
        """The mailboxes that have a gap, if only one that is being filled, and when it began, where that is known."""
        found: dict[str, float] = {}
        for mailbox, mailbox_state in self._mailbox_states.items():
            for gap in (mailbox_state.gap, mailbox_state.filling):
                if gap is not None and gap.since is not None:
                    found[mailbox] = min(gap.since, found.get(mailbox, inf))
        return found

    @property
    def memory(self) -> float:
        """So long a time may have passed since a mailbox was last compared: what was told in it may matter."""
        return self.interval + self.idle_interval

    def subscribed(self, mailbox: str, *, new: bool) -> None:
        """The mailbox has a subscription. `new`: it has had none before, as far as this process and the last one
        know. Never waits."""
        if self.mode != "sync":
            return
        mailbox_state = self._mailbox_state(mailbox)
        if new and mailbox_state.start is None:
            mailbox_state.start = self._start(mailbox)
            self._marks.put(mailbox, trio.current_time())

    def gap(self, mailbox: str, since: float | None, reason: str) -> None:
        """The mailbox was without a stream since that moment (None: since before this process began, and nobody knows
        when), and has one again. Never waits."""
        self.gaps += 1
        self.observer.gap(mailbox, since)
        if self.mode == "off":
            return
        mailbox_state = self._mailbox_state(mailbox)
        if since is None and mailbox_state.start is None:
            mailbox_state.start = self._start(mailbox)
        gap = Gap(since, {reason: None}, before=since is None or reason == "start", heard=mailbox_state.heard)
        mailbox_state.gap = gap if mailbox_state.gap is None else mailbox_state.gap.joined(gap)
        self._open.add(mailbox)
        # All mailboxes at once have one at the start; what is missing then has been missing for a while.
        spread = self.rng.uniform(0, self.start_spread) if reason == "start" else 0.0
        when = trio.current_time() + spread
        if reason in PACED:  # it comes as often as the server makes the mistake
            when = max(when, mailbox_state.paced_until)
        self._gaps.put(mailbox, when)

    def resume(self, mailboxes: Iterable[str]) -> None:
        """These mailboxes have a stream again: gaps that are still open are gone on with. Never waits."""
        for mailbox in mailboxes:
            mailbox_state = self._mailbox_states.get(mailbox)
            if mailbox_state is not None and mailbox_state.gap is not None:
                mailbox_state.failures = 0
                self._gaps.put(mailbox, trio.current_time())

    def note(self, batch: Iterable[MailboxEvent]) -> None:
        """These events came on streams and have been handed on. Never waits."""
        if self.mode != "sync":
            return
        batch = [event for event in batch if not event.type.startswith("exchange.listener.")]
        self.delivered.note(batch)
        for mailbox in {event.mailbox for event in batch}:
            mailbox_state = self._mailbox_state(mailbox)
            if len(self.delivered.of(mailbox)) > self.delivered.each // 2:
                self._sweeps.hasten(mailbox, trio.current_time())
            elif not mailbox_state.traffic and mailbox_state.pace > self.interval:
                self._sweeps.hasten(mailbox, trio.current_time() + self.interval)
            mailbox_state.traffic, mailbox_state.heard = True, trio.current_time()

    def unreported(self, batch: Sequence[MailboxEvent]) -> Sequence[MailboxEvent]:
        """Those of these events that came on streams which were not reported before, while there was no stream: the
        server may have queued them meanwhile. Never waits."""
        mailbox_states = {event.mailbox: self._mailbox_states.get(event.mailbox) for event in batch}
        if not any(
            mailbox_state is not None and mailbox_state.reported for mailbox_state in mailbox_states.values()
        ):
            return batch
        return [
            event
            for event in batch
            if (mailbox_state := mailbox_states[event.mailbox]) is None
            or report_key(event) not in mailbox_state.reported
        ]

    def announce(self, batch: Iterable[MailboxEvent]) -> None:
        """These events came on streams and are being written to the journal; note() follows. Never waits.

        A comparison that ends meanwhile must not report a thing as created that one of them deletes.
        """
        if self.mode == "sync":
            self.delivered.announce(batch)

    def sweep(self, mailboxes: Iterable[str] | None = None) -> None:
        """Sweep these mailboxes, or all, as soon as possible: one that is being compared, once more afterwards."""
        for mailbox in list(self._mailbox_states) if mailboxes is None else mailboxes:
            self._sweeps.put(mailbox, trio.current_time())

    def drop(self, mailbox: str) -> None:
        """The mailbox is not listened to any more. What is kept of it stays."""
        for delay_queue in (self._gaps, self._sweeps, self._builds, self._marks):
            delay_queue.drop(mailbox)
        self._mailbox_states.pop(mailbox, None)
        self._open.discard(mailbox)
        self.delivered.drop(mailbox)

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with trio.open_nursery() as nursery:
            for delay_queue, work, workers in (
                (self._gaps, self._catch_up, self.concurrency),
                (self._sweeps, self._sweep, self.sweepers),
                (self._builds, self._build, self.builders),
                (self._marks, self._keep_mark, 1),
            ):
                for _ in range(workers):
                    nursery.start_soon(self._serve, delay_queue, work)
            nursery.start_soon(self._watch_streams)

    def _mailbox_state(self, mailbox: str) -> MailboxState:
        mailbox_state = self._mailbox_states.get(mailbox)
        if mailbox_state is None:
            mailbox_state = self._mailbox_states[mailbox] = MailboxState(pace=self.interval)
        return mailbox_state

    async def _serve(
        self, delay_queue: DelayQueue, work: Callable[[str, MailboxState], Awaitable[None]]
    ) -> None:
        while True:
            mailbox = await delay_queue.take()
            mailbox_state = self._mailbox_states.get(mailbox)
            if mailbox_state is None:
                continue  # it was dropped while it was worked on
            async with mailbox_state.lock:
                try:
                    await work(mailbox, mailbox_state)
                except ExchangeError as error:
                    self._put_off(delay_queue, mailbox, mailbox_state, error.failure)
                except Exception as error:  # a mistake of ours about one mailbox must not stop the others
                    log.error("catchup.crashed", mailbox=mailbox, exc_info=error)
                    self._put_off(delay_queue, mailbox, mailbox_state, None)
                else:
                    self._went_well(delay_queue, mailbox_state)

    async def _watch_streams(self) -> None:
        """Note which mailboxes have no stream, so that they are compared when that lasts."""
        while self.mode == "sync":
            now, without = trio.current_time(), 0
            for mailbox, mailbox_state in self._mailbox_states.items():
                if self.routes.route(mailbox) is not None:
                    mailbox_state.without = inf
                    continue
                without += 1
                mailbox_state.without = min(mailbox_state.without, now)
                self._sweeps.put(mailbox, max(mailbox_state.without, mailbox_state.alone) + self.interval)
            self._is_without = self._is_without and without > 0
            await trio.sleep(min(WITHOUT_STREAM, self.interval / 4))

    def _went_well(self, delay_queue: DelayQueue, mailbox_state: MailboxState) -> None:
        if delay_queue is self._marks:
            return
        if delay_queue is self._builds:  # what goes wrong with first states says nothing of comparisons
            mailbox_state.build_failures = 0
        else:
            mailbox_state.failures = 0

    def _failures(self, delay_queue: DelayQueue, mailbox_state: MailboxState) -> int:
        """How many there were in a row, with this one."""
        if delay_queue is self._builds:
            mailbox_state.build_failures += 1
            return mailbox_state.build_failures
        mailbox_state.failures += 1
        return mailbox_state.failures

    def _put_off(
        self, delay_queue: DelayQueue, mailbox: str, mailbox_state: MailboxState, failure: Failure | None
    ) -> None:
        if failure is NO_STREAM:
            delay_queue.put(mailbox, trio.current_time() + WITHOUT_STREAM)  # resume() may come sooner
            return
        failures = self._failures(delay_queue, mailbox_state)
        why = {} if failure is None else {"code": failure.code, "text": failure.text}
        if failure is not None and failure.verdict in (Verdict.SUSPEND, Verdict.STOP):
            log.warning("catchup.refused", mailbox=mailbox, **why)
            self.routes.check_access(mailbox, failure)
            delay = Backoff(REFUSED, 2.0, self.idle_interval).longest(failures)
            delay_queue.put(mailbox, trio.current_time() + delay)
            return
        told = None if failure is None else failure.wait
        delay = self.backoff.delay(failures, self.rng.random(), told)
        delay_queue.put(mailbox, trio.current_time() + delay)
        level = log.info if failures < STUBBORN else log.warning
        level("catchup.failed", mailbox=mailbox, failures=failures, retry=round(delay, 3), **why)

    # --- where each mailbox begins

    def _server_time(self, mailbox: str, moment: float) -> float:
        """A moment as Unix seconds by the server's clock, by our own if the server's is not known."""
        route = self.routes.route(mailbox) or self.routes.route_without_stream(mailbox)
        if route is not None and route.server_offset is not None:
            return moment + route.server_offset
        return (self.now() - timedelta(seconds=trio.current_time() - moment)).timestamp()

    def _start(self, mailbox: str) -> float:
        """The second after this one, by the server's clock. Times of items are whole seconds: what is of this second
        may have been there before."""
        return floor(self._server_time(mailbox, trio.current_time())) + 1.0

    def _mark(self, mailbox: str, mailbox_state: MailboxState, kept: Kept, gap: Gap | None = None) -> Mark:
        """Since when the mailbox is listened to."""
        if kept.mark is not None:
            return kept.mark
        if kept.known is not None:  # an older release wrote it
            return Mark(start=floor(kept.known.compared) if kept.known.first else 0.0)
        if mailbox_state.start is None and gap is not None and gap.since is not None:
            start = float(floor(self._server_time(mailbox, gap.since)))
        else:
            start = self._start(mailbox) if mailbox_state.start is None else mailbox_state.start
        match self.initial:
            case None:
                backfill = start
            case datetime() as moment:
                backfill = moment.timestamp()
            case seconds:
                backfill = start - seconds
        return Mark(start=start, backfill=backfill if backfill < start else None)

    async def _keep_mark(self, mailbox: str, mailbox_state: MailboxState) -> None:
        """Keep when the mailbox was subscribed for the first time, before anything is known of it."""
        kept = await load_known(self.states, mailbox)
        if kept.known is None and kept.mark is None:
            await self.states.save(mailbox, (), encoded({}, mark=self._mark(mailbox, mailbox_state, kept)))

    # --- gaps

    async def _catch_up(self, mailbox: str, mailbox_state: MailboxState) -> None:
        gap, mailbox_state.gap = mailbox_state.gap, None
        mailbox_state.filling = gap
        if gap is None:
            return
        if PACED.intersection(gap.reasons):
            mailbox_state.paced_until = trio.current_time() + PACED_PAUSE
        done = False
        try:
            if self.mode == "signal":
                await self._tell_gap(mailbox, gap, self._wall(gap.since))
            else:
                await self._fill(mailbox, mailbox_state, gap)
            done = True
        finally:
            mailbox_state.filling = None
            if not done:
                mailbox_state.gap = gap.joined(mailbox_state.gap)
            elif mailbox_state.gap is None:
                self._open.discard(mailbox)

    async def _fill(self, mailbox: str, mailbox_state: MailboxState, gap: Gap) -> None:
        queries, open_gap = self._queries(mailbox), gap
        started_at = trio.current_time()
        kept = await load_known(self.states, mailbox)
        known, mark = kept.known, self._mark(mailbox, mailbox_state, kept, gap)
        younger = gap.since is not None and mailbox_state.first > gap.since - LATE
        if gap.since is not None and gap.since < mailbox_state.alone:
            gap = replace(gap, since=mailbox_state.alone)  # what came before has been found
        is_news = known is not None or gap.since is not None
        since = self._since(gap, known)
        if is_news and not open_gap.told:
            log.info("catchup.started", mailbox=mailbox, reasons=list(gap.reasons))
            await self._tell_gap(mailbox, gap, since)
            open_gap.told = True
        comparison = self._comparison(mailbox, mailbox_state, queries, mark, since)
        comparison.cutoff = None if since is None else comparison.since - SKEW
        # Rather report what came just before the first subscription than lose what came just after it.
        comparison.early = gap.since is not None and self._server_time(mailbox, gap.since) < mark.start
        # A stream may be read on for long after it was last known to be well for each of its mailboxes.
        if gap.heard > -inf:
            heard = datetime.fromtimestamp(self._server_time(mailbox, gap.heard), UTC)
            comparison.since = max(comparison.since, heard)
        # What was first looked at inside the gap, or in a process that ended soon after, may hide what came before.
        older = gap.before or (gap.since is not None and gap.since < self.started_at)
        comparison.distrusted = younger or (known is not None and known.first and older)
        await self._compare(comparison, kept)
        if known is None:
            mailbox_state.first = trio.current_time()
        mailbox_state.compared = started_at
        mailbox_state.reported.clear()  # the stream has brought what was queued
        if is_news:
            self._looked(mailbox, started_at)
            if comparison.unseen or comparison.unread:
                await self._tell(mailbox, "gap", _unfilled(comparison))
            await self._tell(mailbox, "recovered", f"{comparison.found} events")
            log.info("catchup.finished", mailbox=mailbox, **_figures(comparison, started_at))
        self._builds.put(mailbox, trio.current_time())
        self._sweeps.put(mailbox, trio.current_time() + self.interval * self.rng.uniform(0.5, 1.0))

    def _since(self, gap: Gap, known: Known | None) -> datetime | None:
        """When it began; None if nothing can have been missed, since nobody listened before."""
        compared = datetime.fromtimestamp(known.compared, UTC) if known is not None and gap.before else None
        moments = [moment for moment in (compared, self._wall(gap.since)) if moment is not None]
        return min(moments, default=None)

    def _queries(self, mailbox: str) -> Queries:
        route = self.routes.route(mailbox)
        if route is None:
            raise ExchangeError(NO_STREAM)
        return Queries(route)

    def _comparison(
        self, mailbox: str, mailbox_state: MailboxState, queries: Queries, mark: Mark, since: datetime | None
    ) -> Resync:
        """A comparison; `since`: when the mailbox was last known to be well, None if never, by our own clock."""
        now, server_now = self.now(), self._server_time(mailbox, trio.current_time())
        ahead = timedelta(seconds=server_now - now.timestamp())
        return Resync(
            mark=mark,
            server_now=floor(server_now) + 1.0,
            since=(now if since is None else since) + ahead,
            mailbox=mailbox,
            queries=queries,
            kinds=self.kinds,
            states=self.states,
            delivered=self.delivered,
            now=self.now,
            grace=self.settle,
            stubborn=mailbox_state.failures >= STUBBORN,
        )

    async def _compare(self, comparison: Resync, kept: Kept) -> None:
        try:
            await comparison.run(kept.known, kept.records)
        finally:
            self.recovered += comparison.found
            self.requests += comparison.queries.requests

    def _looked(self, mailbox: str, started_at: float) -> None:
        self.observer.compared(mailbox, started_at)

    # --- sweeps

    async def _sweep(self, mailbox: str, mailbox_state: MailboxState) -> None:
        if (
            self.routes.route(mailbox) is None
            and trio.current_time() >= max(mailbox_state.without, mailbox_state.alone) + self.interval
        ):
            await self._sweep_alone(mailbox, mailbox_state)
            return
        queries = self._queries(mailbox)
        kept = await load_known(self.states, mailbox)
        known = kept.known
        if known is None or mailbox_state.gap is not None:
            return  # the catch-up that comes plans the next sweep
        started_at, traffic = trio.current_time(), mailbox_state.traffic
        mailbox_state.traffic = False
        since = datetime.fromtimestamp(known.compared, UTC)
        comparison = self._comparison(
            mailbox, mailbox_state, queries, self._mark(mailbox, mailbox_state, kept), since
        )
        comparison.trusting, comparison.grace = True, self.grace
        await self._compare(comparison, kept)
        mailbox_state.compared = started_at
        self._looked(mailbox, started_at)
        if comparison.replaced:
            self.routes.renew(mailbox)  # its subscription is one to the mailbox that was there before
        if comparison.found:
            reason = "silent" if comparison.missed else "sweep"
            await self._tell_gap(mailbox, Gap(None, {reason: None}), since)
            await self._tell(mailbox, "recovered", f"{comparison.found} events")
        log.log(
            logging.WARNING if comparison.missed else logging.DEBUG,
            "sweep.finished",
            mailbox=mailbox,
            missed=comparison.missed,
            **_figures(comparison, started_at),
        )
        self._judge(mailbox, mailbox_state, comparison.missed if mailbox_state.gap is None else 0)
        busy = traffic or comparison.found
        mailbox_state.pace = (
            self.interval if busy else min(2 * mailbox_state.pace, max(self.interval, self.idle_interval))
        )
        self._sweeps.put(mailbox, trio.current_time() + mailbox_state.pace)
        self._builds.put(mailbox, trio.current_time())

    async def _sweep_alone(self, mailbox: str, mailbox_state: MailboxState) -> None:
        """Compare a mailbox that has had no stream for a while, if its server answers other requests."""
        route = self.routes.route_without_stream(mailbox)
        if route is None:
            raise ExchangeError(NO_STREAM)
        started_at = trio.current_time()
        kept = await load_known(self.states, mailbox)
        known, mark = kept.known, self._mark(mailbox, mailbox_state, kept, mailbox_state.gap)
        since = datetime.fromtimestamp(mark.start if known is None else known.compared, UTC)
        comparison = self._comparison(mailbox, mailbox_state, Queries(route), mark, since)
        comparison.cutoff = comparison.since - SKEW
        # A stream may have ended soon after the first look, and have kept back what came before.
        comparison.distrusted = known is not None and known.first
        try:
            await self._compare(comparison, kept)
        except ExchangeError as error:
            # Nothing else works either: that is an outage, of which the groups report.
            mailbox_state.alone_failures += 1
            delay = Backoff(self.interval, 2.0, self.idle_interval).longest(mailbox_state.alone_failures)
            delay = max(delay, self.interval, error.failure.wait or 0.0)
            log.debug(
                "catchup.failed",
                mailbox=mailbox,
                failures=mailbox_state.alone_failures,
                retry=round(delay, 3),
                code=error.failure.code,
                text=error.failure.text,
            )
            mailbox_state.alone = max(mailbox_state.alone, started_at + delay - self.interval)
            self._sweeps.put(mailbox, started_at + delay)
            return
        mailbox_state.alone_failures, mailbox_state.first = 0, -inf
        if len(mailbox_state.reported) < MOST_REPORTED:
            mailbox_state.reported |= comparison.reported
        mailbox_state.compared = mailbox_state.alone = started_at
        self._looked(mailbox, started_at)
        if not self._is_without:
            self._is_without = True
            without = sum(each.without < inf for each in self._mailbox_states.values())
            log.warning("catchup.without_stream", mailboxes=without, text=BUFFERED)
        if comparison.found:
            await self._tell_gap(mailbox, Gap(None, {"no_stream": None}), since)
            await self._tell(mailbox, "recovered", f"{comparison.found} events")
        level = log.info if comparison.found else log.debug
        level("catchup.compared_without_stream", mailbox=mailbox, **_figures(comparison, started_at))
        self._sweeps.put(mailbox, trio.current_time() + self.interval)

    def _judge(self, mailbox: str, mailbox_state: MailboxState, missed: int) -> None:
        """Tells of a silent stream: of one that is so again and again, ever more seldom."""
        self.missed += missed
        mailbox_state.finds = mailbox_state.finds + 1 if missed else 0
        if mailbox_state.finds and mailbox_state.finds & (mailbox_state.finds - 1) == 0:
            self.routes.renew(mailbox)

    # --- first states

    async def _build(self, mailbox: str, mailbox_state: MailboxState) -> None:
        try:
            now = trio.current_time()
            skipped = {folder for folder, skip in mailbox_state.skipped.items() if skip.until > now}
            built = await build_page(
                self._queries(mailbox), self.states, mailbox, skipped, mailbox_state.listings
            )
        except FolderError as error:
            again = error.failure.verdict is Verdict.RETRY and mailbox_state.build_failures >= STUBBORN
            if not again and error.failure.code not in FOLDERS_OWN:
                raise  # it is not for this folder alone
            log.warning(
                "catchup.folder_skipped", mailbox=mailbox, code=error.failure.code, folder=error.folder_id
            )
            delay = (
                mailbox_state.skipped[error.folder_id].delay * 2
                if error.folder_id in mailbox_state.skipped
                else SKIPPED
            )
            delay = min(delay, LONGEST_SKIP)
            mailbox_state.skipped[error.folder_id] = Skip(trio.current_time() + delay, delay)
            built = error.folder_id, False
        await trio.sleep(PACE)
        if built is None:
            log.debug("catchup.ready", mailbox=mailbox)
            waiting = [
                skip.until for skip in mailbox_state.skipped.values() if skip.until > trio.current_time()
            ]
            if waiting:
                self._builds.put(mailbox, min(waiting))
            return
        self._builds.put(mailbox, trio.current_time())

    # --- what handlers are told

    def _wall(self, since: float | None) -> datetime | None:
        return None if since is None else self.now() - timedelta(seconds=trio.current_time() - since)

    async def _tell_gap(self, mailbox: str, gap: Gap, since: datetime | None) -> None:
        began = "an unknown moment" if since is None else f"{since:%Y-%m-%dT%H:%M:%SZ}"
        await self._tell(mailbox, "gap", f"{', '.join(gap.reasons)}: from {began} on")

    async def _tell(self, mailbox: str, word: str, reason: str) -> None:
        time = f"{self.now():%Y-%m-%dT%H:%M:%SZ}"
        event = MailboxEvent(type=f"exchange.listener.{word}", mailbox=mailbox, time=time, reason=reason)
        await self.states.save(mailbox, (event,), {})


def _unfilled(comparison: Resync) -> str:
    parts = []
    if comparison.unseen:
        parts.append(f"what was deleted cannot be told in {_listed(comparison.unseen)}")
    if comparison.unread:
        parts.append(f"cannot be read: {_listed(comparison.unread)}")
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more folders" if more > 0 else "")


def _figures(comparison: Resync, started_at: float) -> dict[str, float]:
    return {
        "found": comparison.found,
        "folders": comparison.folders,
        "requests": comparison.queries.requests,
        "seconds": round(trio.current_time() - started_at, 3),
    }


NO_STREAM = Failure(code="NoStream", text="its stream is not open")

# Events of a mailbox without a stream, give or take a comparison, that are not reported again when it has one.
MOST_REPORTED = 10_000

BUFFERED = (
    "no stream could be opened for a while, but other requests are answered: mailboxes are compared instead, every "
    "[catch_up] interval. If GetStreamingEvents times out, the probable cause is a reverse proxy that buffers "
    "responses: turn off its response buffering for /EWS/Exchange.asmx"
)

# Seconds after which it is seen whether a mailbox has a stream again, and whether one can be read again.
WITHOUT_STREAM, REFUSED = 30.0, 15.0

# Reasons that a server can give again and again on a stream that is well, and the seconds between two comparisons
# for them.
PACED, PACED_PAUSE = frozenset({"EventWithoutId"}), 60.0

# How late, in seconds, a stream may tell what happened: that long before it broke may be missing too.
LATE = 30.0

# Seconds between two pages of first states, which nobody is waiting for.
PACE = 0.05

# So many failures in a row, and single folders that cannot be read are passed over.
STUBBORN = 3

# Refusals that are of one folder, and not of the mailbox or the account.
FOLDERS_OWN = frozenset(
    {
        "ErrorAccessDenied",
        "ErrorFolderNotFound",
        "ErrorSyncFolderNotFound",
        "ErrorItemNotFound",
        "UnexpectedReply",  # also a listing that makes no progress: a page in between must not hide it
    }
)
# Seconds for which a folder is passed over that gave no first state: twice as long each time.
SKIPPED, LONGEST_SKIP = 900.0, 86400.0

# So many folders are named in a reason.
NAMED = 5
