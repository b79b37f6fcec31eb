"""What a group of subscriptions can ask for, and what can come of it: the words of listener/groups/group.py."""

from dataclasses import dataclass

from listener.ews.codes import Failure

# --- actions: what is to be going on


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe these mailboxes; afresh: forget the cookies, and the first of them, the anchor, before the rest."""

    mailboxes: tuple[str, ...]
    anchor: str
    from_anchor: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """Keep one connection open for these subscriptions, (mailbox, SubscriptionId) each."""

    subscriptions: tuple[tuple[str, str], ...]
    anchor: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until this moment; if `eager`, only until the server is heard in another group, and a little."""

    until: float
    eager: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Tell the server that these subscriptions, (mailbox, SubscriptionId) each, are no longer needed."""

    subscriptions: tuple[tuple[str, str], ...]
    anchor: str


@dataclass(frozen=True, slots=True)
class Discover:
    """Ask where these mailboxes live now."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Give these mailboxes a group, and so a connection, of their own; `each`: one group for each of them."""

    mailboxes: tuple[str, ...]
    each: bool = False


Action = Subscribe | Stream | Wait | Unsubscribe | Discover | Split

# --- outcomes: what came of it


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What a Subscribe came to: a mailbox that stands in neither was not tried."""

    ids: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The connection is over, after `duration` seconds. No failures: the server closed it in good order.

    `alive`: the server said something that makes sense before.
    """

    duration: float
    failures: tuple[Failure, ...] = ()
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Waited:
    """A Wait is over; `early`, because the server was heard in another group."""

    early: bool = False


@dataclass(frozen=True, slots=True)
class Discovered:
    """What a Discover came to: who has left for another group, and whose place could not be told."""

    gone: tuple[str, ...] = ()
    unknown: tuple[tuple[str, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class SplitDone:
    """A Separate is over: these mailboxes have left."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Doubted:
    """These mailboxes may have moved, or their subscriptions be gone; `taken`: their ids are somebody else's now."""

    mailboxes: tuple[str, ...]
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Denied:
    """This mailbox has a subscription, but cannot be read: its subscription is of no use."""

    mailbox: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Joined:
    """Mailboxes are to be added to the group."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """Mailboxes are to be listened to no longer."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The group is to end; `unsubscribe` tells whether the server is told."""

    unsubscribe: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """An Unsubscribe is over, whatever came of it."""


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
