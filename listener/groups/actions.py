"""The actions that the state machine of a group requests, and the outcomes that it accepts.

The state machine is listener/groups/group.py.
"""

from dataclasses import dataclass

from listener.ews.codes import Failure

# --- actions


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe these mailboxes.

    `from_anchor`: discard the cookies, and subscribe the first mailbox, the anchor, before the others.
    """

    mailboxes: tuple[str, ...]
    anchor: str
    from_anchor: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """Keep one connection open for these (mailbox, SubscriptionId)."""

    subscriptions: tuple[tuple[str, str], ...]
    anchor: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until this moment; if `eager`, only until shortly after the server has answered another group."""

    until: float
    eager: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Unsubscribe these (mailbox, SubscriptionId)."""

    subscriptions: tuple[tuple[str, str], ...]
    anchor: str


@dataclass(frozen=True, slots=True)
class Discover:
    """Find the present placements of these mailboxes."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Move these mailboxes to a group, and so a connection, of their own; `each`: one group for each of them."""

    mailboxes: tuple[str, ...]
    each: bool = False


Action = Subscribe | Stream | Wait | Unsubscribe | Discover | Split

# --- outcomes


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The results of a Subscribe. A mailbox in neither list was not tried."""

    ids: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The connection has ended, after `duration` seconds.

    Without failures, the server ended it in an orderly way. `alive`: the server had sent a valid signal.
    """

    duration: float
    failures: tuple[Failure, ...] = ()
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Waited:
    """A Wait has ended; `early`: because the server has answered another group."""

    early: bool = False


@dataclass(frozen=True, slots=True)
class Discovered:
    """The results of a Discover: mailboxes that moved to another group, and mailboxes that were not found."""

    gone: tuple[str, ...] = ()
    unknown: tuple[tuple[str, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class SplitDone:
    """These mailboxes have left the group."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Doubted:
    """These mailboxes may have moved, or may have lost their subscriptions.

    `taken`: their subscription ids belong to other mailboxes now.
    """

    mailboxes: tuple[str, ...]
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Denied:
    """This mailbox has a subscription, but cannot be read, so that the subscription reports nothing."""

    mailbox: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Joined:
    """Add these mailboxes to the group."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """Remove these mailboxes from the group."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the group; `unsubscribe`: unsubscribe all its mailboxes first."""

    unsubscribe: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """An Unsubscribe has ended, with success or not."""


Outcome = (
    Subscribed
    | StreamEnded
    | Waited
    | Discovered
    | SplitDone
    | Doubted
    | Denied
    | Joined
    | Left
    | Stop
    | Unsubscribed
)
