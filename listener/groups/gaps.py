"""Since when the mailboxes of a group have been without a stream, and why: kept until it can be looked into. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from listener.ews.codes import Failure


class Gap(NamedTuple):
    """A time without a stream. `since` is when the last one was heard, None if none ever was; seconds.

    Where `since` is None, there was nothing that could have told anything before.
    """

    mailbox: str
    since: float | None
    reason: str


class Gaps:
    """The open gaps of one group, one a mailbox. The first reason counts, and the earliest moment.

    `last_seen` has the moment when the stream of each mailbox last worked, or, before that, when it was first
    subscribed. It may be shared with other groups. Moments before `started_at` are from an earlier process.
    """

    def __init__(self, last_seen: dict[str, float] | None = None, started_at: float = -inf) -> None:
        self._last_seen = {} if last_seen is None else last_seen
        self._started_at = started_at
        self._open: dict[str, Gap] = {}

    def seen(self, mailboxes: Iterable[str], moment: float) -> None:
        """The stream of these mailboxes was well until then.

        A gap that is open stays so: whoever takes the mailbox over, another group perhaps, finds where it began.
        """
        self._last_seen |= dict.fromkeys(
            (mailbox for mailbox in mailboxes if mailbox not in self._open), moment
        )

    def subscribed(self, mailbox: str, moment: float) -> None:
        """It has a new subscription, which knows nothing of what was before it, or one from an earlier process.

        From the first subscription on nothing may be missed, though no stream of it was heard yet.
        """
        last_seen = self._last_seen.get(mailbox)
        if last_seen is None:
            self._last_seen[mailbox] = moment
            # In place of one from before it left, if there is one: meanwhile nobody listened.
            self._open[mailbox] = Gap(mailbox, None, "start")
        else:
            self._note(mailbox, "start" if last_seen < self._started_at else "lost")

    def known(self, mailboxes: Iterable[str]) -> dict[str, float]:
        """When the streams of these mailboxes were last heard."""
        return {mailbox: self._last_seen[mailbox] for mailbox in mailboxes if mailbox in self._last_seen}

    def ended(
        self,
        mailboxes: Iterable[str],
        failures: Sequence[Failure],
        *,
        cut: bool,
        since: Mapping[str, float] | None = None,
    ) -> bool:
        """The stream of these mailboxes is over; whether something may be lost with it.

        `cut`: we ended it ourselves, before the server did. `since`: when this stream was last heard, for it may have
        been replaced long ago by one that is well.
        """
        reasons = [failure.code for failure in failures if failure.code in LOSSY]
        if cut:
            reasons.append("replaced")
        if reasons:
            for mailbox in mailboxes:
                self._note(mailbox, reasons[0], None if since is None else since.get(mailbox))
        return bool(reasons)

    def lost(self, mailbox: str, reason: str, since: float | None) -> None:
        """Note that events of this mailbox were not delivered, from `since` on (None: since it was last heard)."""
        self._note(mailbox, reason, since)

    def take_over(self, others: Gaps) -> None:
        """Take the open gaps of a group that this one replaces."""
        for mailbox, gap in others._open.items():
            mine = self._open.get(mailbox)
            if mine is None or mine.since is None or gap.since is None:
                self._open[mailbox] = gap
            else:
                self._open[mailbox] = gap._replace(since=min(gap.since, mine.since))

    def close(self, mailboxes: Iterable[str]) -> list[Gap]:
        """The gaps of those among these mailboxes that have one. They have a stream again: it is over."""
        found = (self._open.pop(mailbox, None) for mailbox in mailboxes)
        return [gap for gap in found if gap is not None]

    def missing_since(self, mailbox: str, *, streams: bool) -> float | None:
        """From when on something may be missing, if that is before its group was last heard: since the gap began, or
        since it was last heard if it is not among those that stream."""
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


# Ends of a stream after which what was on its way is lost, though the subscriptions live on.
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
