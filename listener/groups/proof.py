"""Holds the events of a subscription until it is proven that the subscription belongs to the mailbox.

An id from an earlier process, or from before a possible restart of the server, may belong to another mailbox by now
(listener/groups/ownership.py). The folders of the first events decide:

1. A folder is known as this mailbox's: the id is proven, and the events are published.
2. A folder is known as another mailbox's: the events are dropped.
3. No folder is known: the events are held while the folders of the mailbox are looked up, first in the snapshots of
   catch-up, then on the server. If none of the events is in one of these folders, the events are dropped.

Dropped events are not lost: the mailbox gets a new subscription and an open gap, and catch-up finds what is missing.
At most MAX_HELD events of a mailbox are held. One more event drops them all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from listener.ews.codes import ExchangeError
from listener.ews.events import Event
from listener.groups.group_context import GroupContext


class HeldEvents(Protocol):
    """What becomes of held events (listener/groups/publisher.py)."""

    async def folders_of(self, mailbox: str, /) -> Collection[str]:
        """Return the folder ids of a mailbox from the server. Raises ExchangeError."""

    async def publish_held(self, mailbox: str, events: Sequence[Event], /) -> None: ...
    def drop_held(self, hold: Hold, /) -> None: ...


@dataclass(eq=False, slots=True)
class Hold:
    """The held events of one subscription.

    `since`: when a stream of the mailbox was last seen before the stream of these events.
    """

    subscription: str
    mailbox: str
    since: float | None
    events: list[Event] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


def folders_of(events: Iterable[Event]) -> set[str]:
    """Return the ids of the folders that the events name."""
    return {id_ for event in events for id_ in (event.parent_folder_id, event.folder_id) if id_ is not None}


class Proofs:
    """The unproven subscriptions of one group. `holds` has the held events by subscription id."""

    def __init__(self, context: GroupContext, held: HeldEvents) -> None:
        self.holds: dict[str, Hold] = {}
        self._context = context
        self._held = held

    def admit(
        self, subscription: str, mailbox: str, events: Sequence[Event], since: float | None
    ) -> tuple[bool, Hold | None]:
        """Return whether the subscription is proven, and a hold if the caller must start `prove` for it."""
        registry, group = self._context.registry, self._context.group
        hold = self.holds.get(subscription)
        if hold is None:
            if registry.is_proven(group, subscription):
                return True, None
            owned = registry.owns_folders(mailbox, folders_of(events))
            if owned:
                registry.confirm(group, subscription)
                return True, None
            hold = self.holds[subscription] = Hold(subscription, mailbox, since)
            self._add(hold, events)
            if owned is False:
                self._drop(hold, "the events are in a folder of another mailbox")
                return False, None
            return False, hold
        self._add(hold, events)
        held = sum(len(each.events) for each in self.holds.values())
        if len(hold.events) > MAX_HELD or held > MAX_HELD_IN_GROUP:
            self._drop(hold, "too many events wait for the proof")
        return False, None

    async def prove(self, hold: Hold) -> None:
        """Look up the folders of the mailbox, and publish or drop the held events."""
        registry = self._context.registry
        with hold.scope:
            reason = "none of the events is in a folder of the mailbox"
            known: set[str] = set()
            try:
                known.update(await registry.folders(hold.mailbox))
                if known.isdisjoint(hold.folders):
                    known.update(await self._held.folders_of(hold.mailbox))
            except ExchangeError as error:
                reason = f"the folders cannot be read: {error.failure.code}"
            except Exception as error:
                self._context.log.error("mailbox.crashed", mailbox=hold.mailbox, exc_info=error)
                reason = f"the folders cannot be read: {type(error).__name__}"
            group = self._context.group
            owner = registry.owner(group, hold.subscription)
            if owner is not None and owner != hold.mailbox:
                # The server has just given the id to another mailbox of this process.
                await self._publish(hold, owner)
            elif known.isdisjoint(hold.folders):
                self._drop(hold, reason)
            else:
                registry.add_folders(hold.mailbox, known & hold.folders)
                registry.confirm(group, hold.subscription)
                await self._publish(hold, hold.mailbox)

    def end(self) -> None:
        """Stop all proofs. Held events stay in `holds`: they were not published."""
        for hold in self.holds.values():
            hold.scope.cancel()

    async def _publish(self, hold: Hold, mailbox: str) -> None:
        try:
            while hold.events:  # more may arrive meanwhile; `holds` keeps the order
                events, hold.events = hold.events, []
                await self._held.publish_held(mailbox, events)
        except Exception as error:
            self._context.log.error("mailbox.crashed", mailbox=mailbox, exc_info=error)
            self._drop(hold, f"they cannot be published: {type(error).__name__}")
        else:
            self.holds.pop(hold.subscription, None)

    def _add(self, hold: Hold, events: Sequence[Event]) -> None:
        hold.events += events
        hold.folders |= folders_of(events)

    def _drop(self, hold: Hold, reason: str) -> None:
        self._context.log.warning(
            "subscription.not_proven",
            mailbox=hold.mailbox,
            subscription_id=hold.subscription,
            dropped=len(hold.events),
            reason=reason,
        )
        self.holds.pop(hold.subscription, None)
        hold.scope.cancel()
        self._held.drop_held(hold)


# Held events of one mailbox, and of one group.
MAX_HELD = 500
MAX_HELD_IN_GROUP = 10_000
