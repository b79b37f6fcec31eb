"""Since when the mailboxes of a group have been without a stream, and why: kept until it can be looked into. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from listener.ews.codes import Failure


class Gap(NamedTuple):
    """A time without a stream. `since` is when the last one was heard, None if none ever was; seconds."""

    mailbox: str
    since: float | None
    reason: str


class Gaps:
    """The open gaps of one group, one a mailbox. The first reason counts, and the earliest moment."""

    def __init__(self) -> None:
        self._well: dict[str, float] = {}
        self._open: dict[str, Gap] = {}

    def heard(self, mailboxes: Iterable[str], moment: float) -> None:
        """The stream of these mailboxes was well until then."""
        self._well |= dict.fromkeys(mailboxes, moment)

    def subscribed(self, mailbox: str) -> None:
        """It has a new subscription, which knows nothing of what was before it."""
        self._note(mailbox, "lost" if mailbox in self._well else "start")

    def ended(self, mailboxes: Iterable[str], failures: Sequence[Failure], *, cut: bool) -> bool:
        """The stream of these mailboxes is over; whether something may be lost with it.

        `cut`: we ended it ourselves, before the server did.
        """
        reasons = [failure.code for failure in failures if failure.code in LOSSY]
        if cut:
            reasons.append("replaced")
        if reasons:
            for mailbox in mailboxes:
                self._note(mailbox, reasons[0])
        return bool(reasons)

    def close(self, mailboxes: Iterable[str]) -> list[Gap]:
        """The gaps of those among these mailboxes that have one. They have a stream again: it is over."""
        found = (self._open.pop(mailbox, None) for mailbox in mailboxes)
        return [gap for gap in found if gap is not None]

    def _note(self, mailbox: str, reason: str) -> None:
        self._open.setdefault(mailbox, Gap(mailbox, self._well.get(mailbox), reason))


# Ends of a stream after which what was on its way is lost, though the subscriptions live on.
LOSSY = frozenset(
    {
        "ConnectionReset",
        "EnvelopeTooLarge",
        "ForbiddenXml",
        "MalformedXml",
        "NotSoap",
        "ReadTimeout",
        "StreamIncomplete",
        "StreamSilent",
    }
)
