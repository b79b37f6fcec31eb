"""What catching up knows of mailboxes, kept in the journal: events and states in one transaction."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog
import trio

from listener.event import MailboxEvent
from listener.journal import OWNED, Drop, Journal, Put

log = structlog.get_logger()

NAMESPACE = "sync"


class JournalStates:
    """The States of listener/catchup/resync.py."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]:
        """All that is kept of a mailbox, by key."""
        prefix = mailbox + OWNED
        kept = await self._journal.load(NAMESPACE, prefix)
        return {key.removeprefix(prefix): value for key, value in kept.items()}

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        """Returns when the events and the changes (None removes) are on the disk."""
        prefix = mailbox + OWNED
        written = [
            Drop(NAMESPACE, prefix + key) if value is None else Put(NAMESPACE, prefix + key, value)
            for key, value in changes.items()
        ]
        await self._journal.append(events, written)

    async def forget_strangers(
        self, here: Callable[[], Collection[str]], now: Callable[[], float] = time.time
    ) -> None:
        """Every day, forgets mailboxes that are not `here` any more and were not compared for STRANGE seconds."""
        pause = FIRST
        while True:
            await trio.sleep(pause)
            pause = DAY
            if gone := await self._journal.forget(NAMESPACE, here(), now() - STRANGE):
                log.info("catchup.forgotten", mailboxes=gone)


FIRST = 3600.0
DAY = 86400.0
# Whoever was left out by mistake is still caught up with for so long.
STRANGE = 30 * DAY
