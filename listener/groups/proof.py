"""Holds the events of a subscription until it is proven that the subscription belongs to this mailbox.

An id from an earlier process, or from before the server may have restarted, can belong to another mailbox by now
(listener/groups/ownership.py). The first events of such an id decide:

1. They are in a folder that is known as this mailbox's: the id is proven, and they count.
2. They are in a folder of another mailbox: they are dropped.
3. Nothing is known of the folders: the events are held, and the folders of the mailbox are looked up, first in what
   the catch-up has stored, then on the server. If none of the events is in one of them, they are dropped.

What is dropped is not lost: the mailbox gets a new subscription and an open gap, so that the catch-up finds what is
missing. At most MOST_HELD events of a mailbox are held; one more, and they are dropped too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from listener.errors import ExchangeError
from listener.ews.events import Event
from listener.groups.affinity import Group

Log = structlog.typing.FilteringBoundLogger


class Owners(Protocol):
    """Knows which mailbox each subscription id belongs to (listener/groups/manager.py does)."""

    def owner(self, group: Group, subscription: str, /) -> str | None: ...
    def is_proven(self, group: Group, subscription: str, /) -> bool: ...
    def confirm(self, group: Group, subscription: str, /) -> None: ...
    def add_folders(self, mailbox: str, folders: Iterable[str | None], /) -> None: ...
    def owns_folders(self, mailbox: str, folders: Iterable[str | None], /) -> bool | None: ...
    async def folders(self, mailbox: str, /) -> Collection[str]: ...


@dataclass(eq=False, slots=True)
class Hold:
    """Events of one subscription that wait for the proof. `since` is when a stream of the mailbox was last heard
    before the one that they came on."""

    subscription: str
    mailbox: str
    since: float | None
    events: list[Event] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


def folders_of(events: Iterable[Event]) -> set[str]:
    """Return the ids of the folders that events are about."""
    return {id_ for event in events for id_ in (event.parent_folder_id, event.folder_id) if id_ is not None}


@dataclass(slots=True)
class Proofs:
    """The unproven subscriptions of one group.

    `ask` returns the folder ids of a mailbox from the server; `hand_on` publishes events of a mailbox; `dropped` is
    called when held events were dropped.
    """

    group: Group
    owners: Owners
    ask: Callable[[str], Awaitable[Collection[str]]]
    publish: Callable[[str, Sequence[Event]], Awaitable[None]]
    dropped: Callable[[Hold], None]
    log: Log
    holds: dict[str, Hold] = field(default_factory=dict)

    def admit(
        self, subscription: str, mailbox: str, events: Sequence[Event], since: float | None
    ) -> tuple[bool, Hold | None]:
        """Return whether these events count now, and a hold if `prove` is to be started for it."""
        hold = self.holds.get(subscription)
        if hold is None:
            if self.owners.is_proven(self.group, subscription):
                return True, None
            verdict = self.owners.owns_folders(mailbox, folders_of(events))
            if verdict:
                self.owners.confirm(self.group, subscription)
                return True, None
            hold = self.holds[subscription] = Hold(subscription, mailbox, since)
            self._add(hold, events)
            if verdict is False:
                self._drop(hold, "the events are in a folder of another mailbox")
                return False, None
            return False, hold
        self._add(hold, events)
        if (
            len(hold.events) > MAX_HELD
            or sum(len(each.events) for each in self.holds.values()) > MAX_HELD_IN_GROUP
        ):
            self._drop(hold, "too many events wait for the proof")
        return False, None

    async def prove(self, hold: Hold) -> None:
        """Find out whether the held events are the mailbox's, and hand them on or drop them."""
        with hold.scope:
            reason = "none of the events is in a folder of the mailbox"
            known: set[str] = set()
            try:
                known.update(await self.owners.folders(hold.mailbox))
                if known.isdisjoint(hold.folders):
                    known.update(await self.ask(hold.mailbox))
            except ExchangeError as error:
                reason = f"the folders cannot be read: {error.failure.code}"
            except Exception as error:
                self.log.error("mailbox.crashed", mailbox=hold.mailbox, exc_info=error)
                reason = f"the folders cannot be read: {type(error).__name__}"
            owner = self.owners.owner(self.group, hold.subscription)
            if owner is not None and owner != hold.mailbox:
                # The server has just given the id to another mailbox of this process.
                await self._publish_batch(hold, owner)
            elif known.isdisjoint(hold.folders):
                self._drop(hold, reason)
            else:
                self.owners.add_folders(hold.mailbox, known & hold.folders)
                self.owners.confirm(self.group, hold.subscription)
                await self._publish_batch(hold, hold.mailbox)

    def end(self) -> None:
        """Stop all proofs. What is held stays in `holds`: it was not delivered."""
        for hold in self.holds.values():
            hold.scope.cancel()

    async def _publish_batch(self, hold: Hold, mailbox: str) -> None:
        try:
            while hold.events:  # more may come meanwhile, and must stay behind these
                events, hold.events = hold.events, []
                await self.publish(mailbox, events)
        except Exception as error:
            self.log.error("mailbox.crashed", mailbox=mailbox, exc_info=error)
            self._drop(hold, f"they cannot be published: {type(error).__name__}")
        else:
            self.holds.pop(hold.subscription, None)

    def _add(self, hold: Hold, events: Sequence[Event]) -> None:
        hold.events += events
        hold.folders |= folders_of(events)

    def _drop(self, hold: Hold, reason: str) -> None:
        self.log.warning(
            "subscription.not_proven",
            mailbox=hold.mailbox,
            subscription_id=hold.subscription,
            dropped=len(hold.events),
            reason=reason,
        )
        self.holds.pop(hold.subscription, None)
        hold.scope.cancel()
        self.dropped(hold)


# Events that wait for a proof: of one mailbox, and of one group.
MAX_HELD = 500
MAX_HELD_IN_GROUP = 10_000
