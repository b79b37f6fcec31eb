"""Events and log figures about gaps and comparisons."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import trio

from listener.catchup.resync import Resync
from listener.event import MailboxEvent


def gap_event(mailbox: str, reasons: Iterable[str], since: datetime | None, now: datetime) -> MailboxEvent:
    """Return the event that reports a gap; `since`: its start, None if unknown."""
    began = "an unknown moment" if since is None else f"{since:%Y-%m-%dT%H:%M:%SZ}"
    return listener_event(mailbox, "gap", f"{', '.join(reasons)}: from {began} on", now)


def recovered_event(mailbox: str, comparison: Resync, now: datetime) -> MailboxEvent:
    """Return the event that reports how many events a comparison found."""
    return listener_event(mailbox, "recovered", f"{comparison.found} events", now)


def incomplete_event(mailbox: str, comparison: Resync, now: datetime) -> MailboxEvent | None:
    """Return the event that names the folders in which changes may be missing; None if there are none."""
    parts = []
    if comparison.unseen:
        parts.append(f"deletions cannot be detected in {_listed(comparison.unseen)}")
    if comparison.unread:
        parts.append(f"cannot be read: {_listed(comparison.unread)}")
    return listener_event(mailbox, "gap", "; ".join(parts), now) if parts else None


def listener_event(mailbox: str, word: str, reason: str, now: datetime) -> MailboxEvent:
    """Return an event of the listener itself about a mailbox."""
    time = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    return MailboxEvent(type=f"exchange.listener.{word}", mailbox=mailbox, time=time, reason=reason)


def figures(comparison: Resync, started_at: float) -> dict[str, float]:
    """Return the log fields of a comparison that began at this moment on trio's clock."""
    return {
        "found": comparison.found,
        "folders": comparison.folders,
        "requests": comparison.queries.requests,
        "seconds": round(trio.current_time() - started_at, 3),
    }


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more folders" if more > 0 else "")


# Folders that are named in a reason; the others are counted.
MOST_NAMED = 5

BUFFERED = (
    "no stream could be opened for a while, but other requests are answered: mailboxes are compared instead, every "
    "[catch_up] interval. If GetStreamingEvents times out, the probable cause is a reverse proxy that buffers "
    "responses: turn off its response buffering for /EWS/Exchange.asmx"
)
