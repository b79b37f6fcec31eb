"""Prepares comparisons: what time range one covers, and how far it can rely on the snapshot.

Moments are seconds on trio's clock, unless they are called Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import floor, inf

import trio

from listener.catchup.history import DeliveryHistory
from listener.catchup.mailbox_state import STUBBORN, Gap, MailboxState
from listener.catchup.queries import Queries
from listener.catchup.resync import SKEW, Resync
from listener.catchup.routes import Routes
from listener.catchup.snapshots import FirstSubscription, MailboxRecord, MailboxSnapshot, StateStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonFactory:
    """Creates the comparison for a gap, a sweep, or a time without a stream.

    `started_at`: when this process started. `initial`: the start of the backfill, as of CatchUp. Seconds that a
    comparison waits for events which a stream delivers late: `settle` after a gap, `grace` in a sweep.
    """

    routes: Routes
    states: StateStore
    kinds: frozenset[str]
    delivered: DeliveryHistory
    now: Callable[[], datetime]
    started_at: float
    initial: float | datetime | None
    settle: float
    grace: float

    # --- moments

    def server_time(self, mailbox: str, moment: float) -> float:
        """Return a moment as Unix seconds on the server's clock, or on the local one if the server's is unknown."""
        route = self.routes.route(mailbox) or self.routes.route_without_stream(mailbox)
        if route is not None and route.server_offset is not None:
            return moment + route.server_offset
        return (self.now() - timedelta(seconds=trio.current_time() - moment)).timestamp()

    def local_time(self, moment: float | None) -> datetime | None:
        """Return a moment as a time on the local clock."""
        return None if moment is None else self.now() - timedelta(seconds=trio.current_time() - moment)

    def next_second(self, mailbox: str) -> float:
        """Return the second after the present one, as Unix seconds on the server's clock.

        Times of items are whole seconds: an item of the present second may have existed before.
        """
        return floor(self.server_time(mailbox, trio.current_time())) + 1.0

    def first_subscription(
        self, mailbox: str, state: MailboxState, snapshot: MailboxSnapshot, gap: Gap | None = None
    ) -> FirstSubscription:
        """Return when the mailbox was first subscribed: as stored, or else as far as is known."""
        if snapshot.first_subscription is not None:
            return snapshot.first_subscription
        if snapshot.mailbox is not None:  # written by an older release
            record = snapshot.mailbox
            return FirstSubscription(start=floor(record.compared_at) if record.is_first else 0.0)
        if state.first_subscribed is None and gap is not None and gap.since is not None:
            start = float(floor(self.server_time(mailbox, gap.since)))
        else:
            start = self.next_second(mailbox) if state.first_subscribed is None else state.first_subscribed
        match self.initial:
            case None:
                backfill = start
            case datetime() as moment:
                backfill = moment.timestamp()
            case seconds:
                backfill = start - seconds
        return FirstSubscription(start=start, backfill=backfill if backfill < start else None)

    def gap_start(self, gap: Gap, record: MailboxRecord | None) -> datetime | None:
        """Return when a gap began; None if no change can be missing, because the mailbox was never subscribed."""
        compared = (
            datetime.fromtimestamp(record.compared_at, UTC)
            if record is not None and gap.before_start
            else None
        )
        moments = [moment for moment in (compared, self.local_time(gap.since)) if moment is not None]
        return min(moments, default=None)

    # --- comparisons

    def after_gap(
        self,
        mailbox: str,
        state: MailboxState,
        queries: Queries,
        snapshot: MailboxSnapshot,
        first: FirstSubscription,
        gap: Gap,
        since: datetime | None,
        *,
        snapshot_in_gap: bool,
    ) -> Resync:
        """Return the comparison that fills a gap. `since`: from gap_start().

        `snapshot_in_gap`: this process took the first snapshot after the gap began, or less than LATE before.
        """
        comparison = self._comparison(mailbox, state, queries, first, since)
        comparison.cutoff = None if since is None else comparison.since - SKEW
        # An event from just before the first subscription does less harm than a lost one from just after it.
        comparison.lost_at_once = gap.since is not None and self.server_time(mailbox, gap.since) < first.start
        # A stream may stay readable long after it was last confirmed for each of its mailboxes.
        if gap.last_event > -inf:
            last_event = datetime.fromtimestamp(self.server_time(mailbox, gap.last_event), UTC)
            comparison.since = max(comparison.since, last_event)
        # A first snapshot hides earlier changes, if it was taken in the gap, or by a process that ended soon after.
        is_older = gap.before_start or (gap.since is not None and gap.since < self.started_at)
        record = snapshot.mailbox
        comparison.snapshot_too_recent = snapshot_in_gap or (
            record is not None and record.is_first and is_older
        )
        return comparison

    def sweep(
        self,
        mailbox: str,
        state: MailboxState,
        queries: Queries,
        first: FirstSubscription,
        since: datetime,
    ) -> Resync:
        """Return the comparison of a mailbox whose stream was open all the time."""
        comparison = self._comparison(mailbox, state, queries, first, since)
        comparison.is_sweep, comparison.grace = True, self.grace
        return comparison

    def without_stream(
        self,
        mailbox: str,
        state: MailboxState,
        queries: Queries,
        snapshot: MailboxSnapshot,
        first: FirstSubscription,
        since: datetime,
    ) -> Resync:
        """Return the comparison of a mailbox that has had no stream for a while."""
        comparison = self._comparison(mailbox, state, queries, first, since)
        comparison.cutoff = comparison.since - SKEW
        # A stream may have ended soon after the first comparison, and have held back earlier events.
        record = snapshot.mailbox
        comparison.snapshot_too_recent = record is not None and record.is_first
        return comparison

    def _comparison(
        self,
        mailbox: str,
        state: MailboxState,
        queries: Queries,
        first: FirstSubscription,
        since: datetime | None,
    ) -> Resync:
        """`since`: when the mailbox was last known to be complete, None if never, on the local clock."""
        now, server_now = self.now(), self.server_time(mailbox, trio.current_time())
        server_ahead = timedelta(seconds=server_now - now.timestamp())
        return Resync(
            first_subscription=first,
            server_now=floor(server_now) + 1.0,
            since=(now if since is None else since) + server_ahead,
            mailbox=mailbox,
            queries=queries,
            kinds=self.kinds,
            states=self.states,
            delivered=self.delivered,
            now=self.now,
            grace=self.settle,
            stubborn=state.failures >= STUBBORN,
        )


# Seconds by which a stream may report a change late: changes from that long before it broke may be missing too.
LATE = 30.0
