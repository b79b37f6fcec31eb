"""Closes gaps: finds changes that no stream reported, after each gap and at an interval.

    catch_up = CatchUp(routes=…, states=…, kinds=…)
    catch_up.subscribed(mailbox, new=True)  # changes from now on must be reported
    catch_up.gap(mailbox, since, reason)    # the mailbox's stream is open again, and the server has sent on it
    catch_up.note(batch)                    # a stream delivered these events, and they were passed on
    await catch_up.run()

The rules:

1. A mailbox is compared (resync.py) after each gap. A gap begins when the stream was last known to work. The stream
   is reopened first and the mailbox is compared afterwards, so that no change falls between the two.
2. Without a gap, a mailbox is swept after `interval`. While nothing happens in it, the time doubles after each sweep,
   up to `idle_interval`. A change that a sweep finds is one that an apparently working stream did not report: the
   subscription is renewed.
3. The first SyncStates are built in the background, a page at a time, without events.
4. One task at a time works on a mailbox, and the number of mailboxes at the same time is configured. Failures are
   retried with backoff; the delay grows further if the mailbox cannot be read. A gap stays open until it is filled. A
   new gap is merged into it, and the merged gap begins where the earlier one did.
5. The moment of the first subscription is stored (FirstSubscription in snapshots.py): older items are not reported as
   new. The first comparison comes later, possibly in another process.
6. A mailbox that has a subscription but for `interval` no stream is compared without one, every `interval`, for as
   long as that lasts: a proxy may buffer streams and pass all other requests. The gap stays open, but from then on it
   begins at the last of these comparisons.

Moments are seconds on trio's clock.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import inf
from typing import Literal, TypeAlias

import structlog
import trio

from listener.backoff import Backoff
from listener.catchup.comparison import LATE, ComparisonFactory
from listener.catchup.delay_queue import DelayQueue
from listener.catchup.history import DeliveryHistory, report_key
from listener.catchup.mailbox_state import STUBBORN, Gap, MailboxState
from listener.catchup.observer import NO_OBSERVER, Observer
from listener.catchup.queries import MailboxRoute, Queries
from listener.catchup.reports import BUFFERED, figures, gap_event, incomplete_event, recovered_event
from listener.catchup.resync import Resync
from listener.catchup.routes import Routes
from listener.catchup.snapshot_builder import build_next
from listener.catchup.snapshots import MailboxSnapshot, StateStore, encoded, load_snapshot, stored_folders
from listener.catchup.workers import NO_STREAM, WITHOUT_STREAM, Work, Workers
from listener.event import MailboxEvent
from listener.ews.codes import ExchangeError, Failure

__all__ = ["NO_OBSERVER", "CatchUp", "MailboxRoute", "Mode", "Observer", "Routes", "StateStore"]

log = structlog.get_logger()

Mode: TypeAlias = Literal["sync", "signal", "off"]


@dataclass(slots=True, kw_only=True)
class CatchUp:
    """Scheduler of comparisons for all mailboxes.

    `initial` is the start of the backfill for a mailbox that is subscribed for the first time: seconds before the
    subscription, or a moment; None: no backfill. `kinds` are the subscribed event types, without their prefix. After
    a start, the first comparisons are spread over `start_spread`; moments before `started_at` are from an earlier
    process. A sweep waits `grace`, and a catch-up `settle`, for events that a stream delivers late. `concurrency`,
    `sweepers` and `builders` are the numbers of workers for gaps, sweeps and first SyncStates. Durations are in
    seconds. Counters: `gaps` that were reported, events that were `recovered`, changes that a stream should have
    reported and did not (`missed`), and `requests` without those for first snapshots.
    """

    routes: Routes
    states: StateStore
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
    _first_subscriptions: DelayQueue = field(init=False)
    _logged_without_stream: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._gaps, self._sweeps, self._builds, self._first_subscriptions = (
            DelayQueue(),
            DelayQueue(),
            DelayQueue(),
            DelayQueue(),
        )

    def reconfigure(self, *, interval: float, idle_interval: float, initial: float | datetime | None) -> None:
        """Use these values from the next sweep and the next new mailbox on."""
        self.interval, self.idle_interval, self.initial = interval, idle_interval, initial

    async def stored_folders(self, mailbox: str) -> set[str]:
        """Return the folder ids that are stored for a mailbox."""
        return await stored_folders(self.states, mailbox)

    @property
    def open_gaps(self) -> int:
        """Number of mailboxes with a gap that is not filled."""
        return len(self._open)

    def lagging(self, moment: float) -> int:
        """Return how many mailboxes have an open gap or were not compared since that moment."""
        return sum(
            state.last_compared < moment or mailbox in self._open
            for mailbox, state in self._mailbox_states.items()
        )

    def unfilled(self) -> dict[str, float]:
        """Return the mailboxes with a gap, also one that is being filled now, and when it began, if known."""
        found: dict[str, float] = {}
        for mailbox, state in self._mailbox_states.items():
            for gap in (state.gap, state.gap_in_progress):
                if gap is not None and gap.since is not None:
                    found[mailbox] = min(gap.since, found.get(mailbox, inf))
        return found

    @property
    def history_seconds(self) -> float:
        """Longest time in seconds since a mailbox was last compared. Events of that time are needed to compare it."""
        return self.interval + self.idle_interval

    # --- what streams report; none of these calls waits

    def subscribed(self, mailbox: str, *, new: bool) -> None:
        """Note that the mailbox has a subscription. `new`: neither this process nor the last one knows an earlier
        subscription."""
        if self.mode != "sync":
            return
        state = self._mailbox_state(mailbox)
        if new and state.first_subscribed is None:
            state.first_subscribed = self._comparisons.next_second(mailbox)
            self._first_subscriptions.put(mailbox, trio.current_time())

    def gap(self, mailbox: str, since: float | None, reason: str) -> None:
        """Fill a gap: the mailbox had no stream since that moment, and has one again. `since` None: the gap began
        before this process started, at an unknown moment."""
        self.gaps += 1
        self.observer.gap(mailbox, since)
        if self.mode == "off":
            return
        state = self._mailbox_state(mailbox)
        if since is None and state.first_subscribed is None:
            state.first_subscribed = self._comparisons.next_second(mailbox)
        is_before_start = since is None or reason == "start"
        gap = Gap(since, {reason: None}, before_start=is_before_start, last_event=state.last_event)
        state.gap = gap if state.gap is None else state.gap.joined(gap)
        self._open.add(mailbox)
        # At the start all mailboxes have a gap at the same time. Their changes have been missing for a while already.
        spread = self.rng.uniform(0, self.start_spread) if reason == "start" else 0.0
        when = trio.current_time() + spread
        if reason in PACED:  # it repeats as often as the server makes the mistake
            when = max(when, state.paced_until)
        self._gaps.put(mailbox, when)

    def resume(self, mailboxes: Iterable[str]) -> None:
        """Continue to fill the open gaps of these mailboxes, because they have a stream again."""
        for mailbox in mailboxes:
            state = self._mailbox_states.get(mailbox)
            if state is not None and state.gap is not None:
                state.failures = 0
                self._gaps.put(mailbox, trio.current_time())

    def announce(self, batch: Iterable[MailboxEvent]) -> None:
        """Note events of streams that are being written to the journal; note() follows.

        A comparison that ends meanwhile must not report a thing as created that one of them deletes.
        """
        if self.mode == "sync":
            self.delivered.announce(batch)

    def note(self, batch: Iterable[MailboxEvent]) -> None:
        """Note events that streams delivered and that were passed on."""
        if self.mode != "sync":
            return
        batch = [event for event in batch if not event.type.startswith("exchange.listener.")]
        self.delivered.note(batch)
        for mailbox in {event.mailbox for event in batch}:
            state = self._mailbox_state(mailbox)
            if len(self.delivered.of(mailbox)) > self.delivered.each // 2:
                self._sweeps.hasten(mailbox, trio.current_time())
            elif not state.has_traffic and state.sweep_interval > self.interval:
                self._sweeps.hasten(mailbox, trio.current_time() + self.interval)
            state.has_traffic, state.last_event = True, trio.current_time()

    def unreported(self, batch: Sequence[MailboxEvent]) -> Sequence[MailboxEvent]:
        """Return those events of streams that no comparison without a stream has reported: the server may have
        queued the others meanwhile."""
        states = {event.mailbox: self._mailbox_states.get(event.mailbox) for event in batch}
        if not any(state is not None and state.reported_without_stream for state in states.values()):
            return batch
        return [
            event
            for event in batch
            if (state := states[event.mailbox]) is None
            or report_key(event) not in state.reported_without_stream
        ]

    def sweep(self, mailboxes: Iterable[str] | None = None) -> None:
        """Sweep these mailboxes, or all, as soon as possible. One that is being compared is swept again later."""
        for mailbox in list(self._mailbox_states) if mailboxes is None else mailboxes:
            self._sweeps.put(mailbox, trio.current_time())

    def drop(self, mailbox: str) -> None:
        """Stop work on a mailbox that is not subscribed any more. Its stored snapshot stays."""
        for delay_queue in (self._gaps, self._sweeps, self._builds, self._first_subscriptions):
            delay_queue.drop(mailbox)
        self._mailbox_states.pop(mailbox, None)
        self._open.discard(mailbox)
        self.delivered.drop(mailbox)

    # --- workers

    async def run(self) -> None:
        """Run the workers until cancelled."""
        workers = self._workers()
        async with trio.open_nursery() as nursery:
            for delay_queue, do, count, work in (
                (self._gaps, self._catch_up, self.concurrency, Work.COMPARISON),
                (self._sweeps, self._sweep, self.sweepers, Work.COMPARISON),
                (self._builds, self._build, self.builders, Work.BUILD),
                (self._first_subscriptions, self._store_first_subscription, 1, Work.FIRST_SUBSCRIPTION),
            ):
                for _ in range(count):
                    nursery.start_soon(workers.serve, delay_queue, do, work)
            nursery.start_soon(self._watch_streams)

    def _workers(self) -> Workers:
        return Workers(
            mailbox_states=self._mailbox_states,
            check_access=lambda mailbox, failure: self.routes.check_access(mailbox, failure),
            backoff=self.backoff,
            longest_delay=lambda: self.idle_interval,
            rng=self.rng,
        )

    def _mailbox_state(self, mailbox: str) -> MailboxState:
        state = self._mailbox_states.get(mailbox)
        if state is None:
            state = self._mailbox_states[mailbox] = MailboxState(sweep_interval=self.interval)
        return state

    async def _watch_streams(self) -> None:
        """Note which mailboxes have no stream, so that they are compared when that lasts."""
        while self.mode == "sync":
            now, count = trio.current_time(), 0
            for mailbox, state in self._mailbox_states.items():
                if self.routes.route(mailbox) is not None:
                    state.without_stream_since = inf
                    continue
                count += 1
                state.without_stream_since = min(state.without_stream_since, now)
                self._sweeps.put(mailbox, self._due_without_stream(state))
            self._logged_without_stream = self._logged_without_stream and count > 0
            await trio.sleep(min(WITHOUT_STREAM, self.interval / 4))

    def _due_without_stream(self, state: MailboxState) -> float:
        return max(state.without_stream_since, state.compared_without_stream) + self.interval

    # --- comparisons

    @property
    def _comparisons(self) -> ComparisonFactory:
        # Created for each use: attributes may be replaced at any time.
        return ComparisonFactory(
            routes=self.routes,
            states=self.states,
            kinds=self.kinds,
            delivered=self.delivered,
            now=self.now,
            started_at=self.started_at,
            initial=self.initial,
            settle=self.settle,
            grace=self.grace,
        )

    def _queries(self, mailbox: str) -> Queries:
        route = self.routes.route(mailbox)
        if route is None:
            raise ExchangeError(NO_STREAM)
        return Queries(route)

    async def _compare(self, comparison: Resync, snapshot: MailboxSnapshot) -> None:
        try:
            await comparison.run(snapshot.mailbox, snapshot.folders)
        finally:
            self.recovered += comparison.found
            self.requests += comparison.queries.requests

    async def _report(self, event: MailboxEvent) -> None:
        await self.states.save(event.mailbox, (event,), {})

    async def _store_first_subscription(self, mailbox: str, state: MailboxState) -> None:
        """Store when the mailbox was first subscribed, before its first comparison."""
        snapshot = await load_snapshot(self.states, mailbox)
        if snapshot.mailbox is None and snapshot.first_subscription is None:
            first = self._comparisons.first_subscription(mailbox, state, snapshot)
            await self.states.save(mailbox, (), encoded({}, first_subscription=first))

    # --- gaps

    async def _catch_up(self, mailbox: str, state: MailboxState) -> None:
        gap, state.gap = state.gap, None
        state.gap_in_progress = gap
        if gap is None:
            return
        if PACED.intersection(gap.reasons):
            state.paced_until = trio.current_time() + PACED_PAUSE
        done = False
        try:
            if self.mode == "signal":
                since = self._comparisons.local_time(gap.since)
                await self._report(gap_event(mailbox, gap.reasons, since, self.now()))
            else:
                await self._fill(mailbox, state, gap)
            done = True
        finally:
            state.gap_in_progress = None
            if not done:
                state.gap = gap.joined(state.gap)
            elif state.gap is None:
                self._open.discard(mailbox)

    async def _fill(self, mailbox: str, state: MailboxState, gap: Gap) -> None:
        queries, reported_gap = self._queries(mailbox), gap
        started_at = trio.current_time()
        snapshot = await load_snapshot(self.states, mailbox)
        first = self._comparisons.first_subscription(mailbox, state, snapshot, gap)
        snapshot_in_gap = gap.since is not None and state.first_compared > gap.since - LATE
        if gap.since is not None and gap.since < state.compared_without_stream:
            gap = replace(gap, since=state.compared_without_stream)  # earlier changes have been found
        is_known = snapshot.mailbox is not None or gap.since is not None
        since = self._comparisons.gap_start(gap, snapshot.mailbox)
        if is_known and not reported_gap.reported:
            log.info("catchup.started", mailbox=mailbox, reasons=list(gap.reasons))
            await self._report(gap_event(mailbox, gap.reasons, since, self.now()))
            reported_gap.reported = True
        comparison = self._comparisons.after_gap(
            mailbox, state, queries, snapshot, first, gap, since, snapshot_in_gap=snapshot_in_gap
        )
        await self._compare(comparison, snapshot)
        if snapshot.mailbox is None:
            state.first_compared = trio.current_time()
        state.last_compared = started_at
        state.reported_without_stream.clear()  # the stream has delivered what the server had queued
        if is_known:
            self.observer.compared(mailbox, started_at)
            if (incomplete := incomplete_event(mailbox, comparison, self.now())) is not None:
                await self._report(incomplete)
            await self._report(recovered_event(mailbox, comparison, self.now()))
            log.info("catchup.finished", mailbox=mailbox, **figures(comparison, started_at))
        self._builds.put(mailbox, trio.current_time())
        self._sweeps.put(mailbox, trio.current_time() + self.interval * self.rng.uniform(0.5, 1.0))

    # --- sweeps

    async def _sweep(self, mailbox: str, state: MailboxState) -> None:
        if self.routes.route(mailbox) is None and trio.current_time() >= self._due_without_stream(state):
            await self._sweep_without_stream(mailbox, state)
            return
        queries = self._queries(mailbox)
        snapshot = await load_snapshot(self.states, mailbox)
        if snapshot.mailbox is None or state.gap is not None:
            return  # the catch-up that follows schedules the next sweep
        started_at, has_traffic = trio.current_time(), state.has_traffic
        state.has_traffic = False
        since = datetime.fromtimestamp(snapshot.mailbox.compared_at, UTC)
        first = self._comparisons.first_subscription(mailbox, state, snapshot)
        comparison = self._comparisons.sweep(mailbox, state, queries, first, since)
        await self._compare(comparison, snapshot)
        state.last_compared = started_at
        self.observer.compared(mailbox, started_at)
        if comparison.replaced:
            self.routes.renew(mailbox)  # the subscription still belongs to the earlier mailbox
        if comparison.found:
            reason = "silent" if comparison.missed else "sweep"
            await self._report(gap_event(mailbox, (reason,), since, self.now()))
            await self._report(recovered_event(mailbox, comparison, self.now()))
        log.log(
            logging.WARNING if comparison.missed else logging.DEBUG,
            "sweep.finished",
            mailbox=mailbox,
            missed=comparison.missed,
            **figures(comparison, started_at),
        )
        self._renew_stalled(mailbox, state, comparison.missed if state.gap is None else 0)
        longest = max(self.interval, self.idle_interval)
        is_busy = has_traffic or comparison.found
        state.sweep_interval = self.interval if is_busy else min(2 * state.sweep_interval, longest)
        self._sweeps.put(mailbox, trio.current_time() + state.sweep_interval)
        self._builds.put(mailbox, trio.current_time())

    async def _sweep_without_stream(self, mailbox: str, state: MailboxState) -> None:
        """Compare a mailbox that has had no stream for a while, if its server answers other requests."""
        route = self.routes.route_without_stream(mailbox)
        if route is None:
            raise ExchangeError(NO_STREAM)
        started_at = trio.current_time()
        snapshot = await load_snapshot(self.states, mailbox)
        first = self._comparisons.first_subscription(mailbox, state, snapshot, state.gap)
        compared_at = first.start if snapshot.mailbox is None else snapshot.mailbox.compared_at
        since = datetime.fromtimestamp(compared_at, UTC)
        comparison = self._comparisons.without_stream(mailbox, state, Queries(route), snapshot, first, since)
        try:
            await self._compare(comparison, snapshot)
        except ExchangeError as error:
            # Other requests fail as well: that is an outage, which the groups log.
            self._retry_without_stream(mailbox, state, error.failure, started_at)
            return
        state.failures_without_stream, state.first_compared = 0, -inf
        if len(state.reported_without_stream) < MOST_REPORTED:
            state.reported_without_stream |= comparison.reported
        state.last_compared = state.compared_without_stream = started_at
        self.observer.compared(mailbox, started_at)
        if not self._logged_without_stream:
            self._logged_without_stream = True
            count = sum(each.without_stream_since < inf for each in self._mailbox_states.values())
            log.warning("catchup.without_stream", mailboxes=count, text=BUFFERED)
        if comparison.found:
            await self._report(gap_event(mailbox, ("no_stream",), since, self.now()))
            await self._report(recovered_event(mailbox, comparison, self.now()))
        level = log.info if comparison.found else log.debug
        level("catchup.compared_without_stream", mailbox=mailbox, **figures(comparison, started_at))
        self._sweeps.put(mailbox, trio.current_time() + self.interval)

    def _retry_without_stream(
        self, mailbox: str, state: MailboxState, failure: Failure, started_at: float
    ) -> None:
        state.failures_without_stream += 1
        delay = Backoff(self.interval, 2.0, self.idle_interval).longest(state.failures_without_stream)
        delay = max(delay, self.interval, failure.wait or 0.0)
        log.debug(
            "catchup.failed",
            mailbox=mailbox,
            failures=state.failures_without_stream,
            retry=round(delay, 3),
            code=failure.code,
            text=failure.text,
        )
        state.compared_without_stream = max(state.compared_without_stream, started_at + delay - self.interval)
        self._sweeps.put(mailbox, started_at + delay)

    def _renew_stalled(self, mailbox: str, state: MailboxState, missed: int) -> None:
        """Renew the subscription of a mailbox whose stream does not report changes.

        If it stalls in each sweep, renew it after the 1st, 2nd, 4th, 8th, … of them.
        """
        self.missed += missed
        state.stalled_sweeps = state.stalled_sweeps + 1 if missed else 0
        if state.stalled_sweeps and state.stalled_sweeps & (state.stalled_sweeps - 1) == 0:
            self.routes.renew(mailbox)

    # --- first SyncStates

    async def _build(self, mailbox: str, state: MailboxState) -> None:
        stubborn = state.build_failures >= STUBBORN
        when = await build_next(self._queries(mailbox), self.states, mailbox, state, stubborn=stubborn)
        if when is not None:
            self._builds.put(mailbox, when)


# Events of a mailbox without a stream that are suppressed when the stream delivers them later. The events of one
# comparison may exceed it.
MOST_REPORTED = 10_000

# Gap reasons that a server can cause repeatedly on a working stream, and the seconds between two comparisons for
# them.
PACED, PACED_PAUSE = frozenset({"EventWithoutId"}), 60.0
