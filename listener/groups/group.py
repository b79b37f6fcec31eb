"""The state machine of one group of subscriptions. Pure: no I/O, no clock, no random numbers.

The rules:

1. `GroupState.actions` are the actions that must run now. `advance()` takes the outcome of one of them and returns
   the next state. The group runner (listener/groups/runner.py) starts new actions, and ends those that are not listed
   any more. There is at most one Stream, one Subscribe and one Wait at a time.
2. A group without a live subscription starts from the anchor: it discards the cookies, subscribes the anchor, and
   then the others. The anchor is the first mailbox by address. A suspended anchor, or one that failed three times, is
   replaced.
3. One connection carries all live subscriptions. Subscriptions outlive connections, so when a connection ends, it is
   reopened with the same subscriptions. The pause before that grows with each consecutive failure. If the server sent
   a signal, but the connection did not last `stable_after` seconds, the pause grows too, but stays short.
4. A mailbox that cannot be subscribed does not delay the others. The others stream, and the refused mailbox waits for
   its own `due` time. It is subscribed while the stream runs, and a new stream with it replaces the running one.
5. A mailbox that seems to live elsewhere is looked up with Autodiscover before it is subscribed again. If it moved,
   it leaves the group. If it is refused repeatedly while others of the group have subscriptions, the affinity cookie
   may be the reason: all such mailboxes leave for one group with a cookie of its own. In a group that was split off
   already (`closed`), each of them leaves for a group of its own.
6. A failure that names more than half of the subscriptions counts as a failure of the connection. A single
   subscription that fails repeatedly among others leaves for a group of its own. If the server refuses the whole
   connection repeatedly, half of the mailboxes leave. So a bad mailbox ends up alone; and if a connection may serve
   one user only, all do.
7. A paused group sends no new requests, but an open stream stays open. A pause that the server did not ask for ends
   early when the server answers another group.
8. Subscriptions outlive this process, too. A group can start with saved ids, and streams at once. The server names
   the ids that it has forgotten, and those mailboxes are subscribed again.
9. An abandoned subscription that the server may still have is unsubscribed while everything else continues. An id
   that belongs to another mailbox by now is not.

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
    """The subscriptions of a group from an earlier run or process.

    `subscriptions` has the SubscriptionId of each mailbox, which the server may still have. `abandoned` are the
    (mailbox, SubscriptionId) to unsubscribe.
    """

    anchor: str
    subscriptions: Mapping[str, str]
    abandoned: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GroupState:
    """The state of a group. Members are sorted by address."""

    members: tuple[Member, ...]
    anchor: str
    policy: Policy = field(default_factory=Policy)
    failures: int = 0  # consecutive, of requests and of connections without any signal
    flaps: int = 0  # consecutive, of connections with a signal that did not become stable
    refusals: int = 0  # consecutive, of connections that ended at once, perhaps because of a single member
    paused_until: float | None = None
    eager: bool = False  # the server did not ask for this pause: it may end early
    subscribe: Subscribe | None = None
    stream: Stream | None = None
    discover: Discover | None = None
    split: Split | None = None
    unsubscribe: Unsubscribe | None = None
    abandoned: tuple[tuple[str, str], ...] = ()  # (mailbox, SubscriptionId): the server may still have them
    stopping: bool = False
    closed: bool = False  # the group was split off from another one

    @classmethod
    def start(
        cls,
        mailboxes: tuple[str, ...],
        policy: Policy | None = None,
        saved: SavedSubscriptions | None = None,
        *,
        closed: bool = False,
    ) -> GroupState:
        """Return the initial state: the group streams the saved subscriptions, and subscribes the other mailboxes."""
        saved = saved or SavedSubscriptions(min(mailboxes), {})
        members = tuple(Member(mailbox, saved.subscriptions.get(mailbox)) for mailbox in sorted(mailboxes))
        state = cls(members, saved.anchor, policy or Policy(), abandoned=saved.abandoned, closed=closed)
        return _plan(state, now=0.0)

    @property
    def actions(self) -> tuple[Action, ...]:
        """The actions that must run now. Without any, the group has ended."""
        wait = None if self.stopping else self._wait()
        actions = (self.stream, self.subscribe, self.discover, self.split, wait, self.unsubscribe)
        return tuple(action for action in actions if action is not None)

    @property
    def live(self) -> tuple[tuple[str, str], ...]:
        """The (mailbox, SubscriptionId) of all subscribed mailboxes."""
        return tuple((m.mailbox, m.subscription) for m in self.members if m.subscription is not None)

    def subscription_of(self, mailbox: str) -> str | None:
        """Return the SubscriptionId of a mailbox, if it has one."""
        index = bisect_left(self.members, mailbox, key=_address)
        member = self.members[index] if index < len(self.members) else None
        return member.subscription if member is not None and member.mailbox == mailbox else None

    @property
    def phase(self) -> str:
        """The phase to display: subscribing, streaming, waiting or stopping."""
        if self.stopping:
            return "stopping"
        if self.stream is not None:
            return "streaming"
        return "waiting" if self.subscribe is None else "subscribing"

    def _wait(self) -> Wait | None:
        if self.paused_until is not None:
            return Wait(self.paused_until, self.eager)
        # A mailbox that becomes due while a Subscribe (or Discover) runs is part of the next one, without a Wait.
        due = min(
            (
                member.due
                for member in self.members
                if is_unsubscribed(member) and (self.discover if member.misplaced else self.subscribe) is None
            ),
            default=None,
        )
        return None if due is None else Wait(due)


def advance(state: GroupState, outcome: Outcome, now: float, jitter: float = 1.0) -> GroupState:
    """Return the state after an outcome at `now`. `jitter` in [0, 1] is the random share of its delays."""
    before = state
    match outcome:
        case Stop(unsubscribe):
            return _stopped(state, unsubscribe=unsubscribe)
        case _ if state.stopping:
            # Actions that ran when the group was stopped may still report. No new action starts.
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
    """Add the subscriptions that the group lost to `abandoned`, if the server may still have them."""
    if isinstance(outcome, Doubted) and outcome.taken:
        return after  # these ids belong to other mailboxes now
    if isinstance(outcome, Subscribed):
        # A lost id was given to another mailbox by this Subscribe. Only mailboxes that left meanwhile are left over.
        members = {m.mailbox for m in after.members}
        lost = [each for each in outcome.ids if each[0] not in members]
    else:
        live = set(after.live)
        lost = [each for each in before.live if each not in live]
    if isinstance(outcome, StreamEnded):
        for failure in (f for f in outcome.failures if f.verdict is Verdict.RESUBSCRIBE):
            # A failure without ids concerns all of them.
            lost = [
                each for each in lost if failure.subscription_ids and each[1] not in failure.subscription_ids
            ]
    return replace(after, abandoned=(*after.abandoned, *lost)) if lost else after


def _after_subscribe(state: GroupState, outcome: Subscribed, now: float, jitter: float) -> GroupState:
    ids, refusals = dict(outcome.ids), dict(outcome.refused)
    new = set(ids.values())
    from_anchor = state.subscribe is not None and state.subscribe.from_anchor
    # Without a live subscription, the whole group is refused, and a split would not help.
    others_live = bool(ids or state.live)

    def settle(member: Member) -> Member:
        if subscription := ids.get(member.mailbox):
            return replace(member, subscription=subscription, failure=None, suspended=False)
        if failure := refusals.get(member.mailbox):
            member = refused(member, failure, state.policy, now, jitter)
            return replace(member, leaving=others_live and needs_own_cookie(member, state.policy))
        if member.subscription in new:
            # A restarted server counts ids from 1 again: this id belongs to another mailbox now.
            return replace(member, subscription=None, due=now)
        return member

    state = _each(replace(state, subscribe=None, failures=0 if ids else state.failures), settle)
    blocking = [f for f in refusals.values() if f.verdict is Verdict.WAIT]
    if from_anchor and not ids and not blocking:
        # The anchor was first, and failed. If it was denied, it is suspended, and the next mailbox is tried at once.
        # After other failures, the next mailbox would reach the same server.
        blocking = [f for f in refusals.values() if f.verdict is not Verdict.SUSPEND]
        all_misplaced = all(f.verdict is Verdict.REGROUP for f in blocking)
        if all_misplaced and state.failures < state.policy.max_failures:
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
            return state  # the stream is reopened at once, without the failed members
    others_live = len(state.live) > 1
    lost = next((f for f in general if f.verdict in (Verdict.RESUBSCRIBE, Verdict.REGROUP)), None)
    denied = next((f for f in general if f.verdict is Verdict.SUSPEND), None)
    if lost is not None:
        state = _each(state, lambda m: lose_subscription(m, lost, now))
    if denied is not None and not others_live:
        return _each(
            state, lambda m: refused(replace(m, subscription=None), denied, state.policy, now, jitter)
        )
    if (lost or denied) and outcome.duration < REJECTED_WITHIN:
        state = replace(state, refusals=state.refusals + 1)
        state = _split_half(state) if others_live else state
        # The stream is opened in the anchor's name, so that the failure may concern the anchor only.
        state = state if denied is None else replace(state, anchor=_next_anchor(state))
    if (lost or denied) and state.refusals <= 1:
        return state  # a restarted back end has forgotten all subscriptions; that alone needs no pause
    if general or outcome.duration < state.policy.stable_after:
        return _pause(state, general, now, jitter, alive=outcome.alive)
    return state


def _reset_counters(state: GroupState, outcome: StreamEnded) -> GroupState:
    """Return the state with the failure counters that this connection has reset."""
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
    """Return the failures of single subscriptions, by id, and those of the connection."""
    live = {subscription for _mailbox, subscription in state.live}
    named: dict[str | None, Failure] = {
        id_: failure
        for failure in failures
        if failure.verdict is not Verdict.WAIT  # a busy server is busy for all
        for id_ in failure.subscription_ids
        if id_ in live
    }
    if len(named) * 2 > len(live):
        return {}, list(failures)
    return named, [f for f in failures if named.keys().isdisjoint(f.subscription_ids)]


def _pause(
    state: GroupState, failures: list[Failure], now: float, jitter: float, alive: bool = False
) -> GroupState:
    # Refused credentials are retried once soon, because a token may have expired. More attempts may lock the account.
    slow = any(
        f.verdict is Verdict.STOP or (f.verdict is Verdict.CREDENTIALS and state.failures) for f in failures
    )
    requested = max((f.wait for f in failures if f.wait is not None), default=None)
    excess = max(state.failures, state.flaps) + 1 - state.policy.max_failures
    if len(state.members) == 1 and excess >= 0 and any(map(is_unknown, failures)):
        # The code is unknown and persists: retry the only mailbox of the group more slowly.
        state = replace(state, failures=state.failures + 1, flaps=state.flaps + 1)
        return replace(
            state,
            paused_until=now + state.policy.suspended.delay(excess + 1, jitter, requested),
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
    pause = backoff.delay(count, jitter, requested)
    eager = requested is None and all(f.verdict is Verdict.RETRY for f in failures)
    return replace(state, paused_until=now + pause, eager=eager)


def _split_half(state: GroupState) -> GroupState:
    """Mark the second half of the members as leaving, after too many refusals of the whole connection."""
    if state.refusals < state.policy.max_failures:
        return state
    staying = [m.mailbox for m in state.members if not m.leaving]
    half = set(staying[(len(staying) + 1) // 2 :])
    marked = _each(state, lambda m: replace(m, leaving=True, subscription=None) if m.mailbox in half else m)
    return replace(marked, failures=0, flaps=0, refusals=0)


def _plan(state: GroupState, now: float) -> GroupState:
    """Return the state with the actions that its members need; while it is paused, with no new requests."""
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


# Seconds. The server refused a connection that ended sooner.
REJECTED_WITHIN = 2.0
