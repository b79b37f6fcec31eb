"""What the scheduler of catch-up knows of one mailbox. Moments are seconds on trio's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

import trio

from listener.catchup.paging import Progress


@dataclass(slots=True)
class Gap:
    """A time without a working stream, and why.

    `since`: when it began; None: unknown. `before_start`: it began before this process started, at least in part.
    `reported`: handlers have received the event about it. `last_event`: when the last event arrived before it.
    """

    since: float | None
    reasons: dict[str, None]
    before_start: bool = False
    reported: bool = False
    last_event: float = -inf

    def joined(self, later: Gap | None) -> Gap:
        """Return one gap that covers both. It counts as reported if the later one adds no reason."""
        if later is None:
            return self
        moments = [since for since in (self.since, later.since) if since is not None]
        return Gap(
            since=min(moments, default=None),
            reasons=self.reasons | later.reasons,
            before_start=self.before_start or later.before_start,
            reported=self.reported and not later.reasons.keys() - self.reasons.keys(),
            last_event=min(self.last_event, later.last_event),
        )


class SkippedFolder(NamedTuple):
    """A folder whose first SyncState is not requested before `until`. `delay`: the seconds of this pause."""

    until: float
    delay: float


@dataclass(slots=True)
class MailboxState:
    """The gap, schedule and failures of one mailbox.

    `lock`: held while a task works on the mailbox.
    `gap`: open, not yet being filled; `gap_in_progress`: being filled now.
    `failures`, `build_failures`, `failures_without_stream`: in a row, of comparisons, of first SyncStates, and of
    comparisons without a stream.
    `sweep_interval`: seconds to the next sweep. `has_traffic`: events arrived since the last sweep.
    `last_event`: when a stream last delivered an event. `stalled_sweeps`: sweeps in a row that found a change which
    the stream had not reported.
    `first_compared`: when this process finished the first comparison; `last_compared`: when the last successful
    comparison began; `compared_without_stream`: the same, of those without a stream.
    `first_subscribed`: Unix seconds on the server's clock, for a mailbox of which none is stored yet.
    `without_stream_since`: when it was first seen without a stream.
    `paced_until`: no comparison before this moment for a reason in PACED.
    `reported_without_stream`: report_key() of the events that comparisons without a stream reported.
    `skipped_folders`, `listings` (progress of first SyncStates): by folder id.
    """

    lock: trio.Lock = field(default_factory=trio.Lock)
    gap: Gap | None = None
    gap_in_progress: Gap | None = None
    failures: int = 0
    build_failures: int = 0
    failures_without_stream: int = 0
    sweep_interval: float = 0.0
    has_traffic: bool = False
    last_event: float = -inf
    stalled_sweeps: int = 0
    first_compared: float = -inf
    last_compared: float = -inf
    compared_without_stream: float = -inf
    first_subscribed: float | None = None
    without_stream_since: float = inf
    paced_until: float = -inf
    reported_without_stream: set[tuple[str | None, ...]] = field(default_factory=set)
    skipped_folders: dict[str, SkippedFolder] = field(default_factory=dict)
    listings: dict[str, Progress] = field(default_factory=dict)


# Failures in a row, after which single folders that cannot be read are skipped.
STUBBORN = 3
