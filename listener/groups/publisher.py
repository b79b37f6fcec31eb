"""Publishes the events of one group: finds the mailbox of each subscription id, and holds unproven events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import structlog
import trio

from listener.catchup.queries import Queries
from listener.event import MailboxEvent
from listener.ews.codes import crash
from listener.ews.events import Event, Notification, mailbox_event
from listener.ews.stream import Signal
from listener.ews.xml import excerpt
from listener.groups.actions import Denied, Doubted
from listener.groups.group_context import GroupContext, Ingest
from listener.groups.proof import Hold, Proofs

log = structlog.get_logger()


class Publisher:
    """The way of one group's events into the journal. `events` counts them."""

    def __init__(self, context: GroupContext, ingest: Ingest) -> None:
        self.events = 0
        self.proofs = Proofs(context, self)
        self._context = context
        self._ingest = ingest

    async def publish(
        self, signals: Sequence[Signal], owners: Mapping[str, str], since: Mapping[str, float]
    ) -> None:
        """Publish the events of these signals; return when they are durable.

        `owners` are the mailboxes of the stream by subscription id. `since` has the moment when a stream of each
        mailbox was last seen before this one: held events that are dropped may be missing from then on.
        """
        context = self._context
        batch: list[MailboxEvent] = []
        for signal in signals:
            if not isinstance(signal, Notification):
                continue
            id_ = signal.subscription_id
            mailbox = context.registry.owner(context.group, id_)
            if mailbox is None and id_ not in context.disowned:
                mailbox = owners.get(id_)
            if signal.dropped or not id_:
                self._report_dropped(signal, owners.values() if mailbox is None else (mailbox,))
            if mailbox is None:
                if id_ and id_ not in context.disowned:
                    context.log.warning("stream.unknown_subscription", subscription_id=excerpt(id_))
                continue
            proven, hold = self.proofs.admit(id_, mailbox, signal.events, since.get(mailbox))
            if proven:
                batch += self._convert(mailbox, signal.events)
            elif hold is not None:
                assert context.nursery is not None
                context.nursery.start_soon(self.proofs.prove, hold)
        if batch:
            await self._publish_batch(batch)

    async def publish_held(self, mailbox: str, events: Sequence[Event]) -> None:
        """Publish events that were held until their subscription was proven."""
        if batch := self._convert(mailbox, events):
            await self._publish_batch(batch)

    def drop_held(self, hold: Hold) -> None:
        """Request a new subscription for the mailbox, and let catch-up find what was dropped."""
        context = self._context
        context.disowned.add(hold.subscription)
        context.gaps.lost(hold.mailbox, "unproven", hold.since)
        if context.registry.owner(context.group, hold.subscription) == hold.mailbox:
            context.registry.release(context.group, hold.subscription, hold.mailbox)
        if context.state.subscription_of(hold.mailbox) == hold.subscription:
            context.post(Doubted((hold.mailbox,), taken=True))

    async def folders_of(self, mailbox: str) -> set[str]:
        """Return the ids of the folders that the mailbox's subscription covers. Raises ExchangeError."""
        route = self._context.route(mailbox)
        queries = Queries(route)
        if route.access.folders is not None:
            return {folder.folder_id for folder in (await queries.folders(route.access.folders)).values()}
        found = await queries.all_folders()
        parents = {folder.parent_folder_id for folder in found.values() if folder.parent_folder_id}
        return parents.union(found)

    async def _publish_batch(self, batch: Sequence[MailboxEvent]) -> None:
        self.events += len(batch)
        # One envelope can hold tens of thousands of events. Other groups publish between the parts.
        for start in range(0, len(batch), MAX_BATCH):
            await self._ingest.publish(batch[start : start + MAX_BATCH])

    def _convert(self, mailbox: str, events: Sequence[Event]) -> list[MailboxEvent]:
        """Return the events for handlers. An unknown exception suspends this mailbox only."""
        context = self._context
        arrived = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        try:
            found = [mailbox_event(mailbox, event, arrived) for event in events]
            context.registry.add_folders(mailbox, [event.parent_folder_id for event in events])
        except Exception as error:
            log.error("mailbox.crashed", group=context.group.name, mailbox=mailbox, exc_info=error)
            context.gaps.lost(mailbox, "InternalError", None)
            context.post(Denied(mailbox, crash(error)))
            return []
        return found

    def _report_dropped(self, notification: Notification, mailboxes: Iterable[str]) -> None:
        """Count events without an id, and request a comparison of each mailbox that they may belong to."""
        context = self._context
        count = notification.dropped + (0 if notification.subscription_id else len(notification.events))
        candidates = sorted(set(mailboxes))
        mailbox = candidates[0] if len(candidates) == 1 else None
        context.log.warning("stream.events_dropped", events=count, mailbox=mailbox, mailboxes=len(candidates))
        context.registry.events_dropped(count)
        for each in candidates:
            context.registry.gap(each, trio.current_time(), EVENT_WITHOUT_ID)


# Events of one append to the journal.
MAX_BATCH = 250

# The reason of a gap of a mailbox with an event without an id.
EVENT_WITHOUT_ID = "EventWithoutId"
