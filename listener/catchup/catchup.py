"""Closes gaps: finds in the mailboxes what no stream told, after each gap and now and then without one.

    catch_up = CatchUp(ask=…, states=…, kinds=…)
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

Moments are seconds on trio's clock.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Literal, NamedTuple, TypeAlias

import structlog
import trio

from listener.backoff import Backoff
from listener.catchup.agenda import Agenda
from listener.catchup.delivered import Delivered
from listener.catchup.differences import Record
from listener.catchup.inquiry import Inquiry, Way
from listener.catchup.knowledge import FolderError, Known, States, build_page, load_known
from listener.catchup.paging import Progress
from listener.catchup.reconcile import SKEW, Comparison
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure, Verdict

__all__ = ["CatchUp", "Mode", "States", "Way"]

log = structlog.get_logger()

Mode: TypeAlias = Literal["sync", "signal", "off"]


@dataclass(slots=True)
class Gap:
    """A time without a stream, and why. `since` None: it is not known. `before`: the gap was there when this process
    began, and since when is not known of all of it. `told`: handlers know."""

    since: float | None
    reasons: dict[str, None]
    before: bool = False
    told: bool = False

    def joined(self, later: Gap | None) -> Gap:
        """Both gaps as one."""
        if later is None:
            return self
        moments = [since for since in (self.since, later.since) if since is not None]
        told = self.told and not later.reasons.keys() - self.reasons.keys()
        before = self.before or later.before
        return Gap(min(moments, default=None), self.reasons | later.reasons, before, told)


class Skip(NamedTuple):
    """A folder is not asked for its first state until then, which was put off for so many seconds."""

    until: float
    delay: float


@dataclass(slots=True)
class Desk:
    """What goes on with one mailbox."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    gap: Gap | None = None
    filling: Gap | None = None
    failures: int = 0
    pace: float = 0.0
    traffic: bool = False
    finds: int = 0  # sweeps in a row that found something
    first: float = -inf  # when it had been looked at for the first time
    compared: float = -inf  # when the last comparison began that came to its end
    build_failures: int = 0
    paced_until: float = -inf  # when it may be compared again for a reason that is PACED
    skipped: dict[str, Skip] = field(default_factory=dict)  # by folder
    listings: dict[str, Progress] = field(default_factory=dict)  # of first states, by folder


@dataclass(slots=True, kw_only=True)
class CatchUp:
    """All mailboxes' gaps and sweeps.

    `ask` gives the way to a mailbox, None while it has no stream. `kinds` are the last words of the event types that
    are subscribed to. `start_spread` is the time over which mailboxes are looked at that have a stream for the first
    time; what is older than `begun`, another process saw. `silent` is told of mailboxes whose streams keep things
    back, `looked` of each comparison that came to its end, and when it began. `grace` is how long a sweep, and
    `settle` how long a catch-up, lets a stream be late. Durations are in seconds. The counts are for whoever watches:
    events that were `recovered`, changes that a stream should have told and did not (`missed`), and `requests`, those
    for first states apart.
    """

    ask: Callable[[str], Way | None]
    states: States
    kinds: frozenset[str]
    mode: Mode = "sync"
    interval: float = 900.0
    idle_interval: float = 7200.0
    start_spread: float = 0.0
    begun: float = -inf
    settle: float = 2.0
    grace: float = 10.0
    concurrency: int = 4
    sweepers: int = 2
    builders: int = 1
    backoff: Backoff = Backoff(first=2.0, factor=2.0, cap=300.0)
    silent: Callable[[str], None] | None = None
    looked: Callable[[str, float], None] | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    dice: random.Random = field(default_factory=random.Random)
    delivered: Delivered = field(default_factory=Delivered)
    recovered: int = 0
    missed: int = 0
    requests: int = 0
    _desks: dict[str, Desk] = field(init=False, default_factory=dict)
    _open: set[str] = field(init=False, default_factory=set)
    _gaps: Agenda = field(init=False)
    _sweeps: Agenda = field(init=False)
    _builds: Agenda = field(init=False)

    def __post_init__(self) -> None:
        self._gaps, self._sweeps, self._builds = Agenda(), Agenda(), Agenda()

    @property
    def open_gaps(self) -> int:
        """How many mailboxes have a gap that is not filled."""
        return len(self._open)

    def behind(self, moment: float) -> int:
        """How many mailboxes have an open gap, or were not compared since that moment."""
        return sum(desk.compared < moment or mailbox in self._open for mailbox, desk in self._desks.items())

    def unfilled(self) -> dict[str, float]:
        """The mailboxes that have a gap, if only one that is being filled, and when it began, where that is known."""
        found: dict[str, float] = {}
        for mailbox, desk in self._desks.items():
            for gap in (desk.gap, desk.filling):
                if gap is not None and gap.since is not None:
                    found[mailbox] = min(gap.since, found.get(mailbox, inf))
        return found

    @property
    def memory(self) -> float:
        """So long a time may have passed since a mailbox was last compared: what was told in it may matter."""
        return self.interval + self.idle_interval

    def gap(self, mailbox: str, since: float | None, reason: str) -> None:
        """The mailbox was without a stream since that moment (None: since before this process began, and nobody knows
        when), and has one again. Never waits."""
        if self.mode == "off":
            return
        desk = self._desk(mailbox)
        gap = Gap(since, {reason: None}, before=since is None or reason == "start")
        desk.gap = gap if desk.gap is None else desk.gap.joined(gap)
        self._open.add(mailbox)
        # All mailboxes at once have one at the start; what is missing then has been missing for a while.
        spread = self.dice.uniform(0, self.start_spread) if reason == "start" else 0.0
        when = trio.current_time() + spread
        if reason in PACED:  # it comes as often as the server makes the mistake
            when = max(when, desk.paced_until)
        self._gaps.put(mailbox, when)

    def resume(self, mailboxes: Iterable[str]) -> None:
        """These mailboxes have a stream again: gaps that are still open are gone on with. Never waits."""
        for mailbox in mailboxes:
            desk = self._desks.get(mailbox)
            if desk is not None and desk.gap is not None:
                desk.failures = 0
                self._gaps.put(mailbox, trio.current_time())

    def note(self, batch: Iterable[MailboxEvent]) -> None:
        """These events came on streams and have been handed on. Never waits."""
        if self.mode != "sync":
            return
        batch = [event for event in batch if not event.type.startswith("exchange.listener.")]
        self.delivered.note(batch)
        for mailbox in {event.mailbox for event in batch}:
            desk = self._desk(mailbox)
            if len(self.delivered.of(mailbox)) > self.delivered.each // 2:
                self._sweeps.hasten(mailbox, trio.current_time())
            elif not desk.traffic and desk.pace > self.interval:
                self._sweeps.hasten(mailbox, trio.current_time() + self.interval)
            desk.traffic = True

    def sweep(self, mailboxes: Iterable[str] | None = None) -> None:
        """Sweeps these mailboxes, or all, as soon as can be."""
        for mailbox in list(self._desks) if mailboxes is None else mailboxes:
            self._sweeps.hasten(mailbox, trio.current_time())

    def drop(self, mailbox: str) -> None:
        """The mailbox is not listened to any more. What is kept of it stays."""
        for agenda in (self._gaps, self._sweeps, self._builds):
            agenda.drop(mailbox)
        self._desks.pop(mailbox, None)
        self._open.discard(mailbox)
        self.delivered.drop(mailbox)

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with trio.open_nursery() as nursery:
            for agenda, work, workers in (
                (self._gaps, self._catch_up, self.concurrency),
                (self._sweeps, self._sweep, self.sweepers),
                (self._builds, self._build, self.builders),
            ):
                for _ in range(workers):
                    nursery.start_soon(self._serve, agenda, work)

    def _desk(self, mailbox: str) -> Desk:
        desk = self._desks.get(mailbox)
        if desk is None:
            desk = self._desks[mailbox] = Desk(pace=self.interval)
        return desk

    async def _serve(self, agenda: Agenda, work: Callable[[str, Desk], Awaitable[None]]) -> None:
        while True:
            mailbox = await agenda.take()
            desk = self._desks.get(mailbox)
            if desk is None:
                continue  # it was dropped while it was worked on
            async with desk.lock:
                try:
                    await work(mailbox, desk)
                except ExchangeError as error:
                    self._put_off(agenda, mailbox, desk, error.failure)
                except Exception as error:  # a mistake of ours about one mailbox must not stop the others
                    log.error("catchup.crashed", mailbox=mailbox, exc_info=error)
                    self._put_off(agenda, mailbox, desk, None)
                else:
                    self._went_well(agenda, desk)

    def _went_well(self, agenda: Agenda, desk: Desk) -> None:
        if agenda is self._builds:  # what goes wrong with first states says nothing of comparisons
            desk.build_failures = 0
        else:
            desk.failures = 0

    def _failures(self, agenda: Agenda, desk: Desk) -> int:
        """How many there were in a row, with this one."""
        if agenda is self._builds:
            desk.build_failures += 1
            return desk.build_failures
        desk.failures += 1
        return desk.failures

    def _put_off(self, agenda: Agenda, mailbox: str, desk: Desk, failure: Failure | None) -> None:
        if failure is NO_STREAM:
            agenda.put(mailbox, trio.current_time() + WITHOUT_STREAM)  # resume() may come sooner
            return
        failures = self._failures(agenda, desk)
        why = {} if failure is None else {"code": failure.code, "text": failure.text}
        if failure is not None and failure.verdict in (Verdict.PARK, Verdict.STOP):
            log.warning("catchup.refused", mailbox=mailbox, **why)
            delay = Backoff(PARKED, 2.0, self.idle_interval).longest(failures)
            agenda.put(mailbox, trio.current_time() + delay)
            return
        told = None if failure is None else failure.wait
        delay = self.backoff.delay(failures, self.dice.random(), told)
        agenda.put(mailbox, trio.current_time() + delay)
        level = log.info if failures < STUBBORN else log.warning
        level("catchup.failed", mailbox=mailbox, failures=failures, retry=round(delay, 3), **why)

    # --- gaps

    async def _catch_up(self, mailbox: str, desk: Desk) -> None:
        gap, desk.gap = desk.gap, None
        desk.filling = gap
        if gap is None:
            return
        if PACED.intersection(gap.reasons):
            desk.paced_until = trio.current_time() + PACED_PAUSE
        done = False
        try:
            if self.mode == "signal":
                await self._tell_gap(mailbox, gap, self._wall(gap.since))
            else:
                await self._fill(mailbox, desk, gap)
            done = True
        finally:
            desk.filling = None
            if not done:
                desk.gap = gap.joined(desk.gap)
            elif desk.gap is None:
                self._open.discard(mailbox)

    async def _fill(self, mailbox: str, desk: Desk, gap: Gap) -> None:
        inquiry = self._inquiry(mailbox)
        begun = trio.current_time()
        known, records = await load_known(self.states, mailbox)
        is_news = known is not None or gap.since is not None
        since = self._since(gap, known)
        if is_news and not gap.told:
            log.info("catchup.begun", mailbox=mailbox, reasons=list(gap.reasons))
            await self._tell_gap(mailbox, gap, since)
            gap.told = True
        comparison = self._comparison(mailbox, desk, inquiry)
        comparison.cutoff = None if since is None else since - SKEW
        # What was first looked at inside the gap, or in a process that ended soon after, may hide what came before.
        younger = gap.since is not None and desk.first > gap.since - LATE
        older = gap.before or (gap.since is not None and gap.since < self.begun)
        comparison.distrusted = younger or (known is not None and known.first and older)
        await self._compare(comparison, known, records)
        if known is None:
            desk.first = trio.current_time()
        desk.compared = begun
        if is_news:
            self._looked(mailbox, begun)
            if comparison.unseen or comparison.unread:
                await self._tell(mailbox, "gap", _unfilled(comparison))
            await self._tell(mailbox, "recovered", f"{comparison.found} events")
            log.info("catchup.done", mailbox=mailbox, **_figures(comparison, begun))
        self._builds.put(mailbox, trio.current_time())
        self._sweeps.put(mailbox, trio.current_time() + self.interval * self.dice.uniform(0.5, 1.0))

    def _since(self, gap: Gap, known: Known | None) -> datetime | None:
        """When it began; None if nothing can have been missed, since nobody listened before."""
        compared = datetime.fromtimestamp(known.compared, UTC) if known is not None and gap.before else None
        moments = [moment for moment in (compared, self._wall(gap.since)) if moment is not None]
        return min(moments, default=None)

    def _inquiry(self, mailbox: str) -> Inquiry:
        way = self.ask(mailbox)
        if way is None:
            raise ExchangeError(NO_STREAM)
        return Inquiry(way)

    def _comparison(self, mailbox: str, desk: Desk, inquiry: Inquiry) -> Comparison:
        return Comparison(
            mailbox=mailbox,
            inquiry=inquiry,
            kinds=self.kinds,
            states=self.states,
            delivered=self.delivered,
            now=self.now,
            grace=self.settle,
            stubborn=desk.failures >= STUBBORN,
        )

    async def _compare(
        self, comparison: Comparison, known: Known | None, records: Mapping[str, Record]
    ) -> None:
        try:
            await comparison.run(known, records)
        finally:
            self.recovered += comparison.found
            self.requests += comparison.inquiry.requests

    def _looked(self, mailbox: str, begun: float) -> None:
        if self.looked is not None:
            self.looked(mailbox, begun)

    # --- sweeps

    async def _sweep(self, mailbox: str, desk: Desk) -> None:
        inquiry = self._inquiry(mailbox)
        known, records = await load_known(self.states, mailbox)
        if known is None or desk.gap is not None:
            return  # the catch-up that comes plans the next sweep
        begun, traffic = trio.current_time(), desk.traffic
        desk.traffic = False
        comparison = self._comparison(mailbox, desk, inquiry)
        comparison.trusting, comparison.grace = True, self.grace
        await self._compare(comparison, known, records)
        desk.compared = begun
        self._looked(mailbox, begun)
        if comparison.found:
            since = datetime.fromtimestamp(known.compared, UTC)
            reason = "silent" if comparison.missed else "sweep"
            await self._tell_gap(mailbox, Gap(None, {reason: None}), since)
            await self._tell(mailbox, "recovered", f"{comparison.found} events")
        level = log.warning if comparison.missed else log.debug
        level("catchup.swept", mailbox=mailbox, missed=comparison.missed, **_figures(comparison, begun))
        self._judge(mailbox, desk, comparison.missed if desk.gap is None else 0)
        busy = traffic or comparison.found
        desk.pace = self.interval if busy else min(2 * desk.pace, max(self.interval, self.idle_interval))
        self._sweeps.put(mailbox, trio.current_time() + desk.pace)
        self._builds.put(mailbox, trio.current_time())

    def _judge(self, mailbox: str, desk: Desk, missed: int) -> None:
        """Tells of a silent stream: of one that is so again and again, ever more seldom."""
        self.missed += missed
        desk.finds = desk.finds + 1 if missed else 0
        if desk.finds and desk.finds & (desk.finds - 1) == 0 and self.silent is not None:
            self.silent(mailbox)

    # --- first states

    async def _build(self, mailbox: str, desk: Desk) -> None:
        try:
            now = trio.current_time()
            skipped = {folder for folder, skip in desk.skipped.items() if skip.until > now}
            built = await build_page(self._inquiry(mailbox), self.states, mailbox, skipped, desk.listings)
        except FolderError as error:
            again = error.failure.verdict is Verdict.RETRY and desk.build_failures >= STUBBORN
            if not again and error.failure.code not in FOLDERS_OWN:
                raise  # it is not for this folder alone
            log.warning(
                "catchup.folder_skipped", mailbox=mailbox, code=error.failure.code, folder=error.folder_id
            )
            delay = desk.skipped[error.folder_id].delay * 2 if error.folder_id in desk.skipped else SKIPPED
            delay = min(delay, LONGEST_SKIP)
            desk.skipped[error.folder_id] = Skip(trio.current_time() + delay, delay)
            built = error.folder_id, False
        await trio.sleep(PACE)
        if built is None:
            log.debug("catchup.ready", mailbox=mailbox)
            waiting = [skip.until for skip in desk.skipped.values() if skip.until > trio.current_time()]
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


def _unfilled(comparison: Comparison) -> str:
    parts = []
    if comparison.unseen:
        parts.append(f"what was deleted cannot be told in {_listed(comparison.unseen)}")
    if comparison.unread:
        parts.append(f"cannot be read: {_listed(comparison.unread)}")
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more folders" if more > 0 else "")


def _figures(comparison: Comparison, begun: float) -> dict[str, float]:
    return {
        "found": comparison.found,
        "folders": comparison.folders,
        "requests": comparison.inquiry.requests,
        "seconds": round(trio.current_time() - begun, 3),
    }


NO_STREAM = Failure(code="NoStream", text="its stream is not open")

# Seconds after which it is seen whether a mailbox has a stream again, and whether one can be read again.
WITHOUT_STREAM, PARKED = 30.0, 15.0

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
