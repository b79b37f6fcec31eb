"""Stores snapshots of mailboxes in the journal: events and SyncStates in one transaction."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog
import trio

from listener.event import MailboxEvent
from listener.journal import OWNED, Drop, Journal, Put

log = structlog.get_logger()

NAMESPACE = "sync"


class JournalStates:
    """The StateStore of listener/catchup/snapshots.py."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]:
        """Return all that is stored for a mailbox, by key."""
        prefix = mailbox + OWNED
        stored = await self._journal.load(NAMESPACE, prefix)
        return {key.removeprefix(prefix): value for key, value in stored.items()}

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        """Store the events and the changes (None removes a key); return when they are on the disk."""
        prefix = mailbox + OWNED
        written = [
            Drop(NAMESPACE, prefix + key) if value is None else Put(NAMESPACE, prefix + key, value)
            for key, value in changes.items()
        ]
        await self._journal.append(events, written)

    async def forget_removed(
        self, configured: Callable[[], Collection[str]], now: Callable[[], float] = time.time
    ) -> None:
        """Delete, every day, what is stored for mailboxes that are not configured any more.

        A mailbox that was compared in the last KEEP_REMOVED seconds is kept.
        """
        pause = FIRST
        while True:
            await trio.sleep(pause)
            pause = DAY
            if removed := await self._journal.forget(NAMESPACE, configured(), now() - KEEP_REMOVED):
                log.info("catchup.forgotten", mailboxes=removed)


FIRST = 3600.0
DAY = 86400.0
# A mailbox that was removed by mistake is still caught up within this time.
KEEP_REMOVED = 30 * DAY
