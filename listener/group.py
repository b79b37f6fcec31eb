"""The life of one group of subscriptions, as a value. No I/O, no clock, no dice.

The rules:

1. `GroupState.actions` says what is to be going on now; `advance()` takes what came of one of them and returns
   the next state. Whoever performs the actions starts those that are new and lets go of those that are no longer
   wanted (listener/supervisor.py does). At most one Stream, one Subscribe and one Wait are wanted at a time.
2. A group without a live subscription begins afresh: new cookies, the anchor subscribed first, then the others.
   The anchor is the first mailbox by address; one that fails three times over, or is parked, makes way.
3. One connection carries all live subscriptions. It is opened again without subscribing anew whenever it ends,
   because subscriptions outlive it. A connection that did not last `settled` seconds counts as a failure, and so
   the pause before the next one grows.
4. Who cannot be subscribed holds nobody up: the others stream, the refused mailbox waits for its own `due` time
   and is subscribed beside the running stream, which is then replaced by one that carries it too.
5. Nothing new is asked of the server while the group is paused; a stream that is open stays open.

Times are seconds on one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from listener.backoff import Backoff
from listener.ews.codes import Failure, Verdict

# --- actions: what is to be going on


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe these mailboxes; afresh: forget the cookies, and the first of them, the anchor, before the rest."""

    mailboxes: tuple[str, ...]
    anchor: str
    afresh: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """Keep one connection open for these subscriptions, (mailbox, SubscriptionId) each."""

    subscriptions: tuple[tuple[str, str], ...]
    anchor: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until this moment."""

    until: float


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Tell the server that these subscriptions, (mailbox, SubscriptionId) each, are no longer needed."""

    subscriptions: tuple[tuple[str, str], ...]
    anchor: str


Action = Subscribe | Stream | Wait | Unsubscribe

# --- outcomes: what came of it


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What a Subscribe came to: a mailbox that stands in neither was not tried."""

    ids: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The connection is over, after `lasted` seconds. No failures: the server closed it in good order."""

    lasted: float
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Waited:
    """A Wait is over."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Mailboxes are to be added to the group."""

    mailboxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The group is to end; `unsubscribe` tells whether the server is told."""

    unsubscribe: bool = True


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """An Unsubscribe is over, whatever came of it."""


Outcome = Subscribed | StreamEnded | Waited | Joined | Stop | Unsubscribed

# --- the state


@dataclass(frozen=True, slots=True)
class Policy:
    """The patience of a group; seconds."""

    backoff: Backoff = Backoff()
    parked: Backoff = Backoff(first=60.0, cap=3600.0)
    settled: float = 30.0


@dataclass(frozen=True, slots=True)
class Member:
    """One mailbox of the group. Without a subscription it is asked for at `due`; `failure` is why it has none."""

    mailbox: str
    subscription: str | None = None
    failures: int = 0
    due: float = 0.0
    failure: Failure | None = None
    parked: bool = False


@dataclass(frozen=True, slots=True)
class GroupState:
    """All that is known of a group. Members are sorted by address."""

    members: tuple[Member, ...]
    anchor: str
    policy: Policy = Policy()
    failures: int = 0  # of the connection, in a row
    paused_until: float | None = None
    subscribe: Subscribe | None = None
    stream: Stream | None = None
    unsubscribe: Unsubscribe | None = None
    stopping: bool = False

    @classmethod
    def start(cls, mailboxes: tuple[str, ...], policy: Policy | None = None) -> GroupState:
        """A group that has nothing yet: its first action is to subscribe everybody."""
        members = tuple(Member(mailbox) for mailbox in sorted(mailboxes))
        return _plan(cls(members, members[0].mailbox, policy or Policy()), now=0.0)

    @property
    def actions(self) -> tuple[Action, ...]:
        """What is to be going on now. None left, and stopping: the group is over."""
        wait = None if self.stopping else self._wait()
        return tuple(a for a in (self.stream, self.subscribe, wait, self.unsubscribe) if a is not None)

    @property
    def live(self) -> tuple[tuple[str, str], ...]:
        """(mailbox, SubscriptionId) of all that the server knows."""
        return tuple((m.mailbox, m.subscription) for m in self.members if m.subscription is not None)

    @property
    def phase(self) -> str:
        """One word for people: starting, streaming, waiting or stopping."""
        if self.stopping:
            return "stopping"
        if self.stream is not None:
            return "streaming"
        return "waiting" if self.subscribe is None else "subscribing"

    def _wait(self) -> Wait | None:
        if self.paused_until is not None:
            return Wait(self.paused_until)
        if self.subscribe is None:
            due = min((m.due for m in self.members if m.subscription is None), default=None)
            return None if due is None else Wait(due)
        return None


def advance(state: GroupState, outcome: Outcome, now: float, dice: float = 1.0) -> GroupState:
    """The state after `outcome`, which came at `now`; `dice` in [0, 1] is this outcome's share of jitter."""
    match outcome:
        case Stop(unsubscribe):
            farewell = Unsubscribe(state.live, state.anchor) if unsubscribe and state.live else None
            return replace(state, stopping=True, subscribe=None, stream=None, unsubscribe=farewell)
        case _ if state.stopping:
            # What was under way when the group was told to stop may still report; nothing is begun any more.
            return replace(state, unsubscribe=None) if isinstance(outcome, Unsubscribed) else state
        case Subscribed():
            state = _after_subscribe(state, outcome, now, dice)
        case StreamEnded():
            state = _after_stream(state, outcome, now, dice)
        case Waited():
            if state.paused_until is not None and state.paused_until <= now:
                state = replace(state, paused_until=None)
        case Joined(mailboxes):
            known = {m.mailbox for m in state.members}
            new = tuple(Member(mailbox, due=now) for mailbox in mailboxes if mailbox not in known)
            state = replace(state, members=tuple(sorted(state.members + new, key=_address)))
        case _:
            raise AssertionError(f"{outcome!r} cannot follow {state.actions!r}")
    return _plan(state, now)


def _after_subscribe(state: GroupState, outcome: Subscribed, now: float, dice: float) -> GroupState:
    ids, refused = dict(outcome.ids), dict(outcome.refused)
    afresh = state.subscribe is not None and state.subscribe.afresh

    def settle(member: Member) -> Member:
        if subscription := ids.get(member.mailbox):
            return replace(member, subscription=subscription, failure=None, parked=False)
        if failure := refused.get(member.mailbox):
            return _refused(member, failure, state.policy, now, dice)
        return member

    state = replace(state, subscribe=None, members=tuple(map(settle, state.members)))
    blocking = [f for f in refused.values() if f.verdict is Verdict.WAIT]
    if not blocking and afresh and not ids:
        # The anchor came first and failed: the next attempt would meet the same server, unless only the mailbox
        # is to blame.
        blocking = [f for f in refused.values() if f.verdict is not Verdict.PARK]
    return _pause(state, blocking, now, dice) if blocking else state


def _after_stream(state: GroupState, outcome: StreamEnded, now: float, dice: float) -> GroupState:
    settled = outcome.lasted >= state.policy.settled
    ours = {subscription for _mailbox, subscription in state.live}
    named = {i: failure for failure in outcome.failures for i in failure.subscription_ids if i in ours}
    general = [failure for failure in outcome.failures if ours.isdisjoint(failure.subscription_ids)]
    state = replace(state, stream=None, failures=0 if settled else state.failures)
    lost_all = any(failure.verdict is Verdict.RESUBSCRIBE for failure in general)
    denied = next((failure for failure in general if failure.verdict is Verdict.PARK), None)

    def settle(member: Member) -> Member:
        if member.subscription is None:
            return member
        failure = named.get(member.subscription)
        if settled:
            member = replace(member, failures=0)
        if failure is not None:
            return _lost(member, failure, state.policy, now, dice)
        if denied is not None and member.mailbox == state.anchor:
            # The stream is asked for in the anchor's name: who may not act for the anchor hears this.
            return _refused(replace(member, subscription=None), denied, state.policy, now, dice)
        return replace(member, subscription=None, due=now) if lost_all else member

    state = replace(state, members=tuple(map(settle, state.members)))
    if named and not general:
        return state  # the others are waiting for their stream: at once, without the bad ones
    if denied is not None or (general and lost_all and state.failures == 0):
        return replace(state, failures=state.failures + 1)
    if general or not settled:
        return _pause(state, general, now, dice)
    return state


def _pause(state: GroupState, failures: list[Failure], now: float, dice: float) -> GroupState:
    count = state.failures + 1
    told = max((f.wait for f in failures if f.wait is not None), default=None)
    slow = any(f.verdict in _FOR_THE_OPERATOR for f in failures)
    backoff = state.policy.parked if slow else state.policy.backoff
    return replace(state, failures=count, paused_until=now + backoff.delay(count, dice, told))


def _lost(member: Member, failure: Failure, policy: Policy, now: float, dice: float) -> Member:
    member = replace(member, subscription=None)
    if failure.verdict is Verdict.RESUBSCRIBE and member.failures == 0:
        return replace(member, failures=1, due=now, failure=failure)
    return _refused(member, failure, policy, now, dice)


def _refused(member: Member, failure: Failure, policy: Policy, now: float, dice: float) -> Member:
    parked = failure.verdict in (Verdict.PARK, Verdict.STOP)
    count = member.failures + 1 if parked == member.parked else 1
    backoff = policy.parked if parked else policy.backoff
    due = now + backoff.delay(count, dice, failure.wait)
    return replace(member, failures=count, due=due, failure=failure, parked=parked)


def _plan(state: GroupState, now: float) -> GroupState:
    """Sets going what the members need, unless the group is paused."""
    if not state.live:
        state = replace(state, stream=None)
    elif any(m.parked for m in state.members if m.mailbox == state.anchor):
        state = replace(state, anchor=_best_anchor(m for m in state.members if m.subscription is not None))
    if state.paused_until is not None:
        return state
    if state.subscribe is None:
        state = _plan_subscribe(state, now)
    if state.live and (state.stream is None or state.stream.subscriptions != state.live):
        state = replace(state, stream=Stream(state.live, state.anchor))
    return state


def _plan_subscribe(state: GroupState, now: float) -> GroupState:
    due = [m for m in state.members if m.subscription is None and m.due <= now]
    if not due:
        return state
    if state.live:
        return replace(state, subscribe=Subscribe(tuple(m.mailbox for m in due), state.anchor, afresh=False))
    anchor = _best_anchor(due)
    others = tuple(m.mailbox for m in due if m.mailbox != anchor)
    return replace(state, anchor=anchor, subscribe=Subscribe((anchor, *others), anchor, afresh=True))


def _best_anchor(members: Iterable[Member]) -> str:
    return min(members, key=lambda m: (m.parked, m.failures // 3, m.mailbox)).mailbox


def _address(member: Member) -> str:
    return member.mailbox


# Asking again soon would change nothing, and refused credentials might lock the account.
_FOR_THE_OPERATOR = frozenset({Verdict.STOP, Verdict.CREDENTIALS})
