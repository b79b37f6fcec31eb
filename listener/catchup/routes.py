"""How catch-up reaches mailboxes, and what it requests from the component that owns the streams."""

from typing import Protocol

from listener.catchup.queries import MailboxRoute
from listener.ews.codes import Failure


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
