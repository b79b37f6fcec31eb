"""What catching up knows of mailboxes, kept in the journal: events and states in one transaction."""

from collections.abc import Mapping, Sequence

from listener.event import MailboxEvent
from listener.journal import Drop, Journal, Put

NAMESPACE = "sync"
_BETWEEN = "\x1f"  # stands in no address


class JournalStates:
    """The States of listener/reconcile.py."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]:
        """All that is kept of a mailbox, by key."""
        prefix = mailbox + _BETWEEN
        kept = await self._journal.load(NAMESPACE, prefix)
        return {key.removeprefix(prefix): value for key, value in kept.items()}

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        """Returns when the events and the changes (None removes) are on the disk."""
        prefix = mailbox + _BETWEEN
        written = [
            Drop(NAMESPACE, prefix + key) if value is None else Put(NAMESPACE, prefix + key, value)
            for key, value in changes.items()
        ]
        await self._journal.append(events, written)
