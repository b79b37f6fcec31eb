"""The open gaps of the mailboxes of a group: since when a mailbox has no stream, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from listener.ews.codes import Failure


class Gap(NamedTuple):
    """A time without a stream.

    `since` is the moment when the mailbox's stream last worked, in seconds; None: this is its first subscription, and
    nothing can be missing.
    """

    mailbox: str
    since: float | None
    reason: str


class Gaps:
    """The open gaps of one group, one for each mailbox, with the first reason and the earliest moment.

    `last_seen` has the moment when the stream of each mailbox last worked, or, before that, when it was first
    subscribed. Groups share it. Moments before `started_at` are from an earlier process.
    """

    def __init__(self, last_seen: dict[str, float] | None = None, started_at: float = -inf) -> None:
        self._last_seen = {} if last_seen is None else last_seen
        self._started_at = started_at
        self._open: dict[str, Gap] = {}

    def seen(self, mailboxes: Iterable[str], moment: float) -> None:
        """Note that the stream of these mailboxes worked at this moment.

        A mailbox with an open gap keeps its moment, so that another group that takes it over finds the gap's start.
        """
        self._last_seen |= dict.fromkeys(
            (mailbox for mailbox in mailboxes if mailbox not in self._open), moment
        )

    def subscribed(self, mailbox: str, moment: float) -> None:
        """Note that the mailbox has a new subscription, without earlier events, or one of an earlier process.

        From its first subscription on, no event may be lost, even before its stream works.
        """
        last_seen = self._last_seen.get(mailbox)
        if last_seen is None:
            self._last_seen[mailbox] = moment
            # This replaces a gap from before the mailbox was removed: it was not monitored meanwhile.
            self._open[mailbox] = Gap(mailbox, None, "start")
        else:
            self._note(mailbox, "start" if last_seen < self._started_at else "lost")

    def known(self, mailboxes: Iterable[str]) -> dict[str, float]:
        """Return when the streams of these mailboxes last worked."""
        return {mailbox: self._last_seen[mailbox] for mailbox in mailboxes if mailbox in self._last_seen}

    def ended(
        self,
        mailboxes: Iterable[str],
        failures: Sequence[Failure],
        *,
        cut: bool,
        since: Mapping[str, float] | None = None,
    ) -> bool:
        """Note that the stream of these mailboxes has ended; return whether events may be lost with it.

        `cut`: it ended before the server's own end of it. `since`: when this stream last worked. A newer stream of
        the mailboxes may have worked since then.
        """
        reasons = [failure.code for failure in failures if failure.code in LOSSY]
        if cut:
            reasons.append("replaced")
        if reasons:
            for mailbox in mailboxes:
                self._note(mailbox, reasons[0], None if since is None else since.get(mailbox))
        return bool(reasons)

    def lost(self, mailbox: str, reason: str, since: float | None) -> None:
        """Note that events of this mailbox were lost, from `since` on (None: since its stream last worked)."""
        self._note(mailbox, reason, since)

    def take_over(self, others: Gaps) -> None:
        """Add the open gaps of a crashed runner of the same group."""
        for mailbox, gap in others._open.items():
            mine = self._open.get(mailbox)
            if mine is None or mine.since is None or gap.since is None:
                self._open[mailbox] = gap
            else:
                self._open[mailbox] = gap._replace(since=min(gap.since, mine.since))

    def close(self, mailboxes: Iterable[str]) -> list[Gap]:
        """Close and return the gaps of these mailboxes, which have a stream again."""
        found = (self._open.pop(mailbox, None) for mailbox in mailboxes)
        return [gap for gap in found if gap is not None]

    def missing_since(self, mailbox: str, *, streams: bool) -> float | None:
        """Return since when the mailbox may miss events, if that is before its group's stream last worked.

        That is the start of its gap; without a gap, the moment when its stream last worked, unless it streams.
        """
        gap = self._open.get(mailbox)
        if gap is not None and gap.since is not None:
            return gap.since
        return None if streams and gap is None else self._last_seen.get(mailbox)

    def _note(self, mailbox: str, reason: str, since: float | None = None) -> None:
        gap = self._open.get(mailbox)
        if gap is None or gap.since is None:
            gap = Gap(mailbox, self._last_seen.get(mailbox), reason)
        if since is not None and gap.since is not None:
            gap = gap._replace(since=min(since, gap.since))
        self._open[mailbox] = gap


# Failures of a stream that lose the events in flight, although the subscriptions remain valid.
LOSSY = frozenset(
    {
        "ConnectionReset",
        "EnvelopeTooLarge",
        "ForbiddenXml",
        "GroupError",
        "MalformedXml",
        "NotSoap",
        "ReadTimeout",
        "StreamIncomplete",
        "StreamSilent",
    }
)
