"""The life of one group of subscriptions, as a value. No I/O, no clock, no dice.

The rules:

1. `GroupState.actions` says what is to be going on now; `advance()` takes what came of one of them and returns
   the next state. Whoever performs the actions starts those that are new and lets go of those that are no longer
   wanted (listener/groups/runner.py does). At most one Stream, one Subscribe and one Wait are wanted at a time.
2. A group without a live subscription begins afresh: new cookies, the anchor subscribed first, then the others.
   The anchor is the first mailbox by address; one that fails three times over, or is suspended, makes way.
3. One connection carries all live subscriptions. It is opened again without subscribing anew whenever it ends,
   because subscriptions outlive it. The pause before that grows with each failure in a row; where the server was
   heard, but the connection did not last `settled` seconds, it grows too, but stays short.
4. Who cannot be subscribed holds nobody up: the others stream, the refused mailbox waits for its own `due` time
   and is subscribed beside the running stream, which is then replaced by one that carries it too.
5. A mailbox that seems to live elsewhere is asked for with Autodiscover before it is subscribed again, and leaves
   if it does. If it is refused again and again while others of the group have subscriptions, the affinity cookie may
   be the reason: it leaves for a group with a cookie of its own, with the others that are refused. In a group that
   was set apart already (`apart`), each such mailbox leaves alone.
6. What is said of more than half of the subscriptions is taken as said of the connection. A single subscription
   that fails again and again in company leaves for a group of its own. If the server refuses the connection as a
   whole again and again, half of the mailboxes leave: so a bad one ends up alone, and where a connection may serve
   one user only, everybody does.
7. Nothing new is asked of the server while the group is paused; a stream that is open stays open. A pause that the
   server did not ask for ends early when the server is heard in another group.
8. Subscriptions outlive this process too: a group may begin with ids that are known from before, and is streaming
   at once. Those that the server has forgotten are named by it, and are subscribed anew as ever.
9. A subscription that is given up while the server may still know it is unsubscribed beside everything else. An id
   that is somebody else's by now is not.

Times are seconds on one monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from listener.ews.codes import Failure, Verdict
from listener.groups.actions import (
    Action,
    Denied,
    Discover,
    Discovered,
    Doubted,
    Joined,
    Left,
    Outcome,
    Split,
    SplitDone,
    Stop,
    Stream,
    StreamEnded,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Wait,
    Waited,
)
from listener.groups.member import (
    Member,
    Policy,
    failed,
    is_unknown,
    is_unsubscribed,
    lose_subscription,
    needs_own_cookie,
    refused,
    retry_now,
)


@dataclass(frozen=True, slots=True)
class SavedSubscriptions:
    """What a group had when it was last at work, in another process perhaps.

    `anchor` is the mailbox in whose name requests were sent, `subscriptions` has the SubscriptionId of each mailbox
    that the server may still know; `abandoned` are (mailbox, SubscriptionId) that nobody wants any more.
    """

    anchor: str
    subscriptions: Mapping[str, str]
    abandoned: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GroupState:
    """All that is known of a group. Members are sorted by address."""

    members: tuple[Member, ...]
    anchor: str
    policy: Policy = field(default_factory=Policy)
    failures: int = 0  # in a row, of requests and of connections on which nothing was heard
    flaps: int = 0  # in a row, of connections that were heard but did not last
    refusals: int = 0  # in a row, of connections that were ended at once, perhaps because of a single member
    paused_until: float | None = None
    eager: bool = False  # the pause is our own idea, not the server's
    subscribe: Subscribe | None = None
    stream: Stream | None = None
    discover: Discover | None = None
    split: Split | None = None
    unsubscribe: Unsubscribe | None = None
    abandoned: tuple[tuple[str, str], ...] = ()  # (mailbox, SubscriptionId): the server may still know them
    stopping: bool = False
    closed: bool = False  # the group was set apart from another one

    @classmethod
    def start(
        cls,
        mailboxes: tuple[str, ...],
        policy: Policy | None = None,
        saved: SavedSubscriptions | None = None,
        *,
        closed: bool = False,
    ) -> GroupState:
        """A group at its beginning: it streams what it has `kept`, and subscribes everybody else."""
        saved = saved or SavedSubscriptions(min(mailboxes), {})
        members = tuple(Member(mailbox, saved.subscriptions.get(mailbox)) for mailbox in sorted(mailboxes))
        state = cls(members, saved.anchor, policy or Policy(), abandoned=saved.abandoned, closed=closed)
        return _plan(state, now=0.0)

    @property
    def actions(self) -> tuple[Action, ...]:
        """What is to be going on now. Nothing: the group is over."""
        wait = None if self.stopping else self._wait()
        actions = (self.stream, self.subscribe, self.discover, self.split, wait, self.unsubscribe)
        return tuple(action for action in actions if action is not None)

    @property
    def live(self) -> tuple[tuple[str, str], ...]:
        """(mailbox, SubscriptionId) of all that the server knows."""
        return tuple((m.mailbox, m.subscription) for m in self.members if m.subscription is not None)

    def subscription_of(self, mailbox: str) -> str | None:
        """The SubscriptionId that a mailbox has."""
        at = bisect_left(self.members, mailbox, key=_address)
        member = self.members[at] if at < len(self.members) else None
        return member.subscription if member is not None and member.mailbox == mailbox else None

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
            return Wait(self.paused_until, self.eager)
        # Who is due while a Subscribe or a Discover is under way comes next.
        workers = ((False, self.subscribe), (True, self.discover))
        open_lanes = {misplaced for misplaced, under_way in workers if under_way is None}
        due = min(
            (m.due for m in self.members if is_unsubscribed(m) and m.misplaced in open_lanes), default=None
        )
        return None if due is None else Wait(due)


def advance(state: GroupState, outcome: Outcome, now: float, jitter: float = 1.0) -> GroupState:
    """The state after `outcome`, which came at `now`; `jitter` in [0, 1] is this outcome's share of jitter."""
    before = state
    match outcome:
        case Stop(unsubscribe):
            return _stopped(state, unsubscribe=unsubscribe)
        case _ if state.stopping:
            # What was under way when the group was told to stop may still report; nothing is begun any more.
            return replace(state, unsubscribe=None) if isinstance(outcome, Unsubscribed) else state
        case Subscribed():
            state = _after_subscribe(state, outcome, now, jitter)
        case StreamEnded():
            state = _after_stream(state, outcome, now, jitter)
        case Waited(early):
            if state.paused_until is not None and (state.paused_until <= now or (early and state.eager)):
                state = replace(state, paused_until=None)
                state = _each(state, lambda m: retry_now(m, now)) if early else state
        case Discovered():
            state = _after_discover(state, outcome, now, jitter)
        case SplitDone(mailboxes):
            state = _without(replace(state, split=None), mailboxes)
        case Doubted(mailboxes):
            doubted = set(mailboxes)
            state = _each(
                state,
                lambda m: (
                    replace(m, subscription=None, misplaced=True, due=now) if m.mailbox in doubted else m
                ),
            )
        case Denied(mailbox, failure):
            state = _each(
                state,
                lambda m: (
                    refused(replace(m, subscription=None), failure, state.policy, now, jitter)
                    if m.mailbox == mailbox and m.subscription is not None
                    else m
                ),
            )
        case Joined(mailboxes):
            known = {m.mailbox for m in state.members}
            new = tuple(Member(mailbox, due=now) for mailbox in mailboxes if mailbox not in known)
            state = replace(state, members=tuple(sorted(state.members + new, key=_address)))
        case Left(mailboxes):
            state = _without(state, mailboxes)
        case Unsubscribed():
            done = state.unsubscribe.subscriptions if state.unsubscribe is not None else ()
            rest = tuple(each for each in state.abandoned if each not in done)
            state = replace(state, unsubscribe=None, abandoned=rest)
        case _:
            raise AssertionError(f"{outcome!r} cannot follow {state.actions!r}")
    return _plan(_abandon_lost(before, state, outcome), now)


def _stopped(state: GroupState, *, unsubscribe: bool) -> GroupState:
    gone = state.abandoned + state.live if unsubscribe else ()
    if unsubscribe:
        state = _each(state, lambda m: replace(m, subscription=None))
    return replace(
        state,
        stopping=True,
        subscribe=None,
        stream=None,
        discover=None,
        split=None,
        abandoned=(),
        unsubscribe=Unsubscribe(gone, state.anchor) if gone else None,
    )


def _abandon_lost(before: GroupState, after: GroupState, outcome: Outcome) -> GroupState:
    """Notes what the group has no longer, as far as the server may still know it."""
    if isinstance(outcome, Doubted) and outcome.taken:
        return after  # these ids are somebody else's now
    if isinstance(outcome, Subscribed):  # and so are those that ids have been given anew of
        members = {m.mailbox for m in after.members}
        lost = [each for each in outcome.ids if each[0] not in members]  # they left meanwhile
    else:
        saved = set(after.live)
        lost = [each for each in before.live if each not in saved]
    if isinstance(outcome, StreamEnded):
        for failure in (f for f in outcome.failures if f.verdict is Verdict.RESUBSCRIBE):
            # Without ids, it is said of all of them.
            lost = [
                each for each in lost if failure.subscription_ids and each[1] not in failure.subscription_ids
            ]
    return replace(after, abandoned=(*after.abandoned, *lost)) if lost else after


def _after_subscribe(state: GroupState, outcome: Subscribed, now: float, jitter: float) -> GroupState:
    ids, refusals = dict(outcome.ids), dict(outcome.refused)
    new = set(ids.values())
    from_anchor = state.subscribe is not None and state.subscribe.from_anchor
    company = bool(
        ids or state.live
    )  # else the whole group is refused: to separate its members would not help

    def settle(member: Member) -> Member:
        if subscription := ids.get(member.mailbox):
            return replace(member, subscription=subscription, failure=None, suspended=False)
        if failure := refusals.get(member.mailbox):
            member = refused(member, failure, state.policy, now, jitter)
            return replace(member, leaving=company and needs_own_cookie(member, state.policy))
        if member.subscription in new:
            # Ids begin anew when a server does: this one is somebody else's now.
            return replace(member, subscription=None, due=now)
        return member

    state = _each(replace(state, subscribe=None, failures=0 if ids else state.failures), settle)
    blocking = [f for f in refusals.values() if f.verdict is Verdict.WAIT]
    if from_anchor and not ids and not blocking:
        # The anchor came first and refusals. A mailbox that is refused is suspended, and so the next one is tried at
        # once; otherwise the next one would meet the same server.
        blocking = [f for f in refusals.values() if f.verdict is not Verdict.SUSPEND]
        astray_only = all(f.verdict is Verdict.REGROUP for f in blocking)
        if astray_only and state.failures < state.policy.max_failures:
            return replace(state, failures=state.failures + len(blocking))
    return _pause(state, blocking, now, jitter) if blocking else state


def _after_discover(state: GroupState, outcome: Discovered, now: float, jitter: float) -> GroupState:
    asked = set(state.discover.mailboxes) if state.discover is not None else set()
    unknown = dict(outcome.unknown)

    def settle(member: Member) -> Member:
        if failure := unknown.get(member.mailbox):
            return replace(refused(member, failure, state.policy, now, jitter), misplaced=True)
        return replace(member, misplaced=False, due=now) if member.mailbox in asked else member

    return _each(_without(replace(state, discover=None), outcome.gone), settle)


def _after_stream(state: GroupState, outcome: StreamEnded, now: float, jitter: float) -> GroupState:
    state = _reset_counters(replace(state, stream=None), outcome)
    named, general = _sort_failures(state, outcome.failures)
    if named:
        state = _each(state, lambda m: failed(m, named.get(m.subscription), state.policy, now, jitter))
        if not general:
            return state  # the others' stream is opened at once, without the bad ones
    company = len(state.live) > 1
    lost = next((f for f in general if f.verdict in (Verdict.RESUBSCRIBE, Verdict.REGROUP)), None)
    denied = next((f for f in general if f.verdict is Verdict.SUSPEND), None)
    if lost is not None:
        state = _each(state, lambda m: lose_subscription(m, lost, now))
    if denied is not None and not company:
        return _each(
            state, lambda m: refused(replace(m, subscription=None), denied, state.policy, now, jitter)
        )
    if (lost or denied) and outcome.duration < REJECTED_WITHIN:
        state = replace(state, refusals=state.refusals + 1)
        state = _split_half(state) if company else state
        # The stream is asked for in the anchor's name: perhaps only the anchor is to blame.
        state = state if denied is None else replace(state, anchor=_next_anchor(state))
    if (lost or denied) and state.refusals <= 1:
        return state  # a back end that began anew has forgotten all: what that takes is no reason to wait
    if general or outcome.duration < state.policy.stable_after:
        return _pause(state, general, now, jitter, alive=outcome.alive)
    return state


def _reset_counters(state: GroupState, outcome: StreamEnded) -> GroupState:
    """The state when what this connection achieved has been set against earlier failures."""
    if outcome.alive:
        state = replace(state, failures=0)
    if outcome.duration >= REJECTED_WITHIN:
        state = replace(state, refusals=0)
    if outcome.duration >= state.policy.stable_after:
        state = _each(
            state, lambda m: m if m.subscription is None else replace(m, failures=0, misplacements=0)
        )
        state = replace(state, flaps=0)
    return state


def _sort_failures(
    state: GroupState, failures: tuple[Failure, ...]
) -> tuple[dict[str | None, Failure], list[Failure]]:
    """What is said of single subscriptions, by id, and what of the connection."""
    ours = {subscription for _mailbox, subscription in state.live}
    named: dict[str | None, Failure] = {
        id_: failure
        for failure in failures
        if failure.verdict is not Verdict.WAIT  # a server that is busy is so for all
        for id_ in failure.subscription_ids
        if id_ in ours
    }
    if len(named) * 2 > len(ours):
        return {}, list(failures)
    return named, [f for f in failures if named.keys().isdisjoint(f.subscription_ids)]


def _pause(
    state: GroupState, failures: list[Failure], now: float, jitter: float, alive: bool = False
) -> GroupState:
    # Credentials are tried once more soon, since a token may just have died; after that they might lock the account.
    slow = any(
        f.verdict is Verdict.STOP or (f.verdict is Verdict.CREDENTIALS and state.failures) for f in failures
    )
    told = max((f.wait for f in failures if f.wait is not None), default=None)
    max_failures = max(state.failures, state.flaps) + 1 - state.policy.max_failures
    if len(state.members) == 1 and max_failures >= 0 and any(map(is_unknown, failures)):
        # Nobody knows what this code means, and it does not pass: the only mailbox here is asked for more slowly.
        state = replace(state, failures=state.failures + 1, flaps=state.flaps + 1)
        return replace(
            state,
            paused_until=now + state.policy.suspended.delay(max_failures + 1, jitter, told),
            eager=False,
        )
    if alive and not slow:
        count = state.flaps + 1
        state, backoff = replace(state, flaps=count), state.policy.flapping
    else:
        count = state.failures + 1
        state, backoff = (
            replace(state, failures=count),
            state.policy.suspended if slow else state.policy.backoff,
        )
    pause = backoff.delay(count, jitter, told)
    eager = told is None and all(f.verdict is Verdict.RETRY for f in failures)
    return replace(state, paused_until=now + pause, eager=eager)


def _split_half(state: GroupState) -> GroupState:
    """Marks the second half of the members after too many refusals of them all together."""
    if state.refusals < state.policy.max_failures:
        return state
    staying = [m.mailbox for m in state.members if not m.leaving]
    half = set(staying[(len(staying) + 1) // 2 :])
    marked = _each(state, lambda m: replace(m, leaving=True, subscription=None) if m.mailbox in half else m)
    return replace(marked, failures=0, flaps=0, refusals=0)


def _plan(state: GroupState, now: float) -> GroupState:
    """Sets going what the members need, unless the group is paused."""
    if state.split is None and (leaving := tuple(m.mailbox for m in state.members if m.leaving)):
        each = state.closed and all(m.misplaced for m in state.members if m.leaving)
        state = replace(state, split=Split(leaving, each))
    if not state.live:
        state = replace(state, stream=None)
    elif not any(m.mailbox == state.anchor and not m.suspended for m in state.members):
        state = replace(state, anchor=_best_anchor(m for m in state.members if m.subscription is not None))
    if state.paused_until is not None:
        return state
    if state.discover is None:
        misplaced = tuple(
            m.mailbox for m in state.members if is_unsubscribed(m) and m.misplaced and m.due <= now
        )
        state = replace(state, discover=Discover(misplaced) if misplaced else None)
    if state.subscribe is None:
        state = _plan_subscribe(state, now)
    if state.live and (state.stream is None or state.stream.subscriptions != state.live):
        state = replace(state, stream=Stream(state.live, state.anchor))
    if state.abandoned and state.unsubscribe is None:
        state = replace(state, unsubscribe=Unsubscribe(state.abandoned, state.anchor))
    return state


def _plan_subscribe(state: GroupState, now: float) -> GroupState:
    due = [m for m in state.members if is_unsubscribed(m) and not m.misplaced and m.due <= now]
    if not due:
        return state
    if state.live:
        return replace(
            state, subscribe=Subscribe(tuple(m.mailbox for m in due), state.anchor, from_anchor=False)
        )
    anchor = _best_anchor(due)
    others = tuple(m.mailbox for m in due if m.mailbox != anchor)
    return replace(state, anchor=anchor, subscribe=Subscribe((anchor, *others), anchor, from_anchor=True))


def _best_anchor(members: Iterable[Member]) -> str:
    return min(members, key=lambda m: (m.suspended, m.failures // 3, m.mailbox)).mailbox


def _next_anchor(state: GroupState) -> str:
    names = [m.mailbox for m in state.members if not m.leaving]
    return next((name for name in names if name > state.anchor), names[0])


def _each(state: GroupState, change: Callable[[Member], Member]) -> GroupState:
    return replace(state, members=tuple(map(change, state.members)))


def _without(state: GroupState, mailboxes: Iterable[str]) -> GroupState:
    gone = set(mailboxes)
    return replace(state, members=tuple(m for m in state.members if m.mailbox not in gone))


def _address(member: Member) -> str:
    return member.mailbox


# A connection that ended sooner, in seconds, was not wanted by the server in the first place.
REJECTED_WITHIN = 2.0
