"""Writes the events of streams to the journal, and reports them to catch-up.

    ingest = Ingest(catch_up, delivery, tracing)
    await ingest.publish(batch)

An event counts as received once the journal has it. Catch-up is notified twice: before the write, so that a
comparison that ends meanwhile does not report an item as created that this batch deletes; and after it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence

import structlog
import trio

from listener.catchup.catchup import CatchUp
from listener.catchup.history_loader import HistoryLoader
from listener.delivery.delivery import Delivery
from listener.event import MailboxEvent
from listener.tracing import Tracing

log = structlog.get_logger()


class Ingest:
    """The way of events from all streams into the journal. `events` counts them."""

    def __init__(self, catch_up: CatchUp, delivery: Delivery, tracing: Tracing) -> None:
        self.events = 0
        self.history = HistoryLoader(catch_up.note)
        self._catch_up = catch_up
        self._delivery = delivery
        self._tracing = tracing
        if catch_up.mode != "sync":  # there are no comparisons, and only they need the history
            self.history.skip()

    async def publish(self, batch: Sequence[MailboxEvent]) -> None:
        """Write these events to the journal; return when they are durable.

        Leave out events that catch-up reported while the mailbox had no stream.
        """
        batch = self._catch_up.unreported(batch)
        if not batch:
            return
        self._catch_up.announce(batch)
        await self._delivery.publish(batch)
        self.events += len(batch)
        if self._tracing.on:
            for event in batch:
                self._tracing.emit(
                    event.mailbox, "event", type=event.type, subject=event.subject, id=event.id
                )
        self.history.note(batch)

    async def load_history(
        self, recent: AsyncGenerator[Sequence[MailboxEvent], None], limit: int, mailboxes: Collection[str]
    ) -> None:
        """Load the events that handlers received before this process. `recent` yields at most `limit` events."""
        if self._catch_up.mode != "sync":
            await recent.aclose()
            return
        started_at = trio.current_time()
        loaded = await self.history.load(recent, mailboxes)
        if loaded.read >= limit:
            self._catch_up.delivered.mark_incomplete(mailboxes)
        seconds = round(trio.current_time() - started_at, 3)
        log.info("catchup.history_loaded", events=loaded.noted, seconds=seconds)
