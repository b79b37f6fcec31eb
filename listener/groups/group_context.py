"""What the tasks of one group share: its state, settings, client and gaps, and the group manager's interface."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from listener.catchup.queries import MailboxRoute
from listener.event import MailboxEvent
from listener.exchange.client import ExchangeClient
from listener.groups.actions import Action, Discovered, Outcome
from listener.groups.affinity import Group
from listener.groups.gaps import Gaps
from listener.groups.group import GroupState
from listener.groups.stream_reader import StreamReader
from listener.groups.subscription_spec import SubscriptionSpec


class Registry(Protocol):
    """The group manager, as one group uses it (listener/groups/manager.py)."""

    async def find(self, group: Group, mailboxes: Sequence[str], /) -> Discovered: ...
    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None: ...
    def resumed(self, mailboxes: Sequence[str], /) -> None: ...
    def claim(self, group: Group, subscription: str, mailbox: str, /) -> None: ...
    def release(self, group: Group, subscription: str, mailbox: str, /) -> None: ...
    def owner(self, group: Group, subscription: str, /) -> str | None: ...
    def doubt(self, group: Group, subscriptions: Iterable[str], /) -> None: ...
    def confirm(self, group: Group, subscription: str, /) -> None: ...
    def is_proven(self, group: Group, subscription: str, /) -> bool: ...
    def add_folders(self, mailbox: str, folders: Iterable[str | None], /) -> None: ...
    def owns_folders(self, mailbox: str, folders: Iterable[str | None], /) -> bool | None: ...
    async def folders(self, mailbox: str, /) -> Collection[str]: ...
    def split(self, group: Group, mailboxes: Sequence[str], /, *, each: bool = False) -> None: ...
    def changed(self, group: Group, /) -> None: ...
    def events_dropped(self, count: int, /) -> None: ...
    async def save_checkpoint(self, group: Group, /) -> None: ...


class Ingest(Protocol):
    """Writes events to the journal (listener/ingest.py)."""

    async def publish(self, batch: Sequence[MailboxEvent], /) -> None:
        """Write these events; return when they are durable."""


@dataclass(eq=False, slots=True)
class Task:
    """A running action. A Stream has a reader, an Unsubscribe a client of its own."""

    action: Action
    reader: StreamReader | None = None
    client: ExchangeClient | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


Message = tuple[Task | None, Outcome]
"""An outcome, and the task that it is of; None: it came from elsewhere."""


@dataclass(slots=True)
class GroupContext:
    """The shared values of one group runner and its parts.

    The group manager replaces `group` when mailboxes join or leave, a reload replaces `spec`, and the runner replaces
    `state`. So the parts read them here at each use.
    """

    group: Group
    client: ExchangeClient
    spec: SubscriptionSpec
    registry: Registry
    state: GroupState
    gaps: Gaps
    log: structlog.typing.FilteringBoundLogger
    outcomes: trio.MemorySendChannel[Message]
    nursery: trio.Nursery | None = None
    # Subscription ids of this group that turned out to be another mailbox's, or of no known owner.
    disowned: set[str] = field(default_factory=set)

    def post(self, outcome: Outcome) -> None:
        """Queue an outcome for the state machine. Never waits."""
        self.outcomes.send_nowait((None, outcome))

    def headers(self, anchor: str) -> dict[str, str]:
        """Return the headers that send a request to the anchor's back end."""
        return {"X-AnchorMailbox": anchor, "X-PreferServerAffinity": "true"}

    def route(self, mailbox: str, server_offset: float | None = None) -> MailboxRoute:
        """Return how to send requests about a mailbox of the group."""
        return MailboxRoute(
            client=self.client,
            headers=self.headers(self.state.anchor),
            version=self.spec.version,
            access=self.spec.access.of(mailbox),
            server_offset=server_offset,
        )
