"""The life of a group, read as transcripts: an outcome, then what the group wants to be going on."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from listener.backoff import Backoff
from listener.ews.codes import VERDICTS, Failure, Verdict
from listener.groups.actions import (
    Action,
    Denied,
    Discover,
    Discovered,
    Doubted,
    Joined,
    Left,
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
from listener.groups.group import GroupState, SavedSubscriptions, advance
from listener.groups.member import Policy

POLICY = Policy(backoff=Backoff(1, 2, 60), suspended=Backoff(60, 2, 3600), stable_after=30)
ALL = (("ann", "1"), ("bob", "2"), ("cat", "3"))


def failure(verdict: Verdict, *ids: str, wait: float | None = None) -> Failure:
    code = next(code for code, v in VERDICTS.items() if v is verdict)
    return Failure(code=code, wait=wait, subscription_ids=ids)


def started() -> GroupState:
    return GroupState.start(("cat", "ann", "bob"), POLICY)


def streaming() -> GroupState:
    return advance(started(), Subscribed(ALL), now=1)


def test_the_anchor_is_first_by_address_and_is_subscribed_first() -> None:
    assert started().actions == (Subscribe(("ann", "bob", "cat"), "ann", from_anchor=True),)


def test_all_subscribed_then_one_stream_carries_them_all() -> None:
    assert streaming().actions == (Stream(ALL, "ann"),)
    assert streaming().phase == "streaming"


def test_closed_reopens_the_stream_at_once_without_subscribing() -> None:
    state = advance(streaming(), StreamEnded(duration=1800), now=1801)
    assert state.actions == (Stream(ALL, "ann"),)
    assert state.failures == 0


def test_streams_that_close_at_once_are_reopened_with_backoff() -> None:
    state, now = streaming(), 1.0
    for pause in (1, 2, 4, 8, 15, 15):
        state = advance(state, StreamEnded(duration=0.1), now)
        assert state.actions == (Wait(now + pause, eager=True),)
        now += pause
        state = advance(state, Waited(), now)
        assert state.actions == (Stream(ALL, "ann"),)


def test_a_server_without_any_signal_is_retried_with_growing_delay() -> None:
    state, now = streaming(), 1.0
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        state = advance(state, StreamEnded(0.1, (Failure(code="Http503"),), alive=False), now)
        assert state.actions == (Wait(now + pause, eager=True),)
        now += pause
        state = advance(state, Waited(), now)


def test_a_broken_stream_is_reopened_with_full_jitter_and_its_subscriptions() -> None:
    state = advance(streaming(), StreamEnded(5, (Failure(code="ConnectionReset"),)), now=10, jitter=0.25)
    assert state.actions == (Wait(10.25, eager=True),)
    assert advance(state, Waited(), now=10.25).actions == (Stream(ALL, "ann"),)


def test_a_signal_resets_the_failures() -> None:
    state = advance(replace(streaming(), failures=5), StreamEnded(1), now=10)
    assert (state.failures, state.flaps, state.actions) == (0, 1, (Wait(11, eager=True),))


def test_only_a_pause_that_the_server_did_not_ask_for_ends_early() -> None:
    own = advance(streaming(), StreamEnded(5, (Failure(code="Http503"),), alive=False), now=10)
    assert advance(own, Waited(early=True), now=10.1).actions == (Stream(ALL, "ann"),)
    asked = advance(streaming(), StreamEnded(5, (Failure(code="Http503", wait=9),), alive=False), now=10)
    assert advance(asked, Waited(early=True), now=10.1).actions == (Wait(20),)


def test_a_stable_stream_resets_all_failures() -> None:
    state = replace(streaming(), failures=5, flaps=3, refusals=2)
    state = advance(state, StreamEnded(31, (Failure(code="StreamSilent"),)), now=10)
    assert (state.failures, state.flaps, state.refusals, state.actions) == (0, 1, 0, (Wait(11, eager=True),))


def test_the_requested_wait_is_the_minimum() -> None:
    busy = Failure(code="ErrorServerBusy", wait=120.0)
    state = advance(streaming(), StreamEnded(0, (busy,)), now=10, jitter=0.5)
    assert state.actions == (Wait(130.5),)


def test_a_server_failure_of_the_anchor_pauses_the_group() -> None:
    state = advance(
        started(), Subscribed(refused=(("ann", Failure(code="Http503", wait=40)),)), now=1, jitter=0
    )
    assert state.actions == (Wait(41),)
    state = advance(state, Waited(), now=41)
    assert state.actions == (Subscribe(("ann", "bob", "cat"), "ann", from_anchor=True),)


def test_a_denied_anchor_is_replaced_at_once() -> None:
    state = advance(started(), Subscribed(refused=(("ann", failure(Verdict.SUSPEND)),)), now=1)
    assert state.actions == (Subscribe(("bob", "cat"), "bob", from_anchor=True),)
    assert state.members[0].suspended


def test_an_anchor_that_fails_three_times_is_replaced() -> None:
    state, now, anchors = started(), 0.0, []
    for _ in range(4):
        (subscribe,) = state.actions
        assert isinstance(subscribe, Subscribe)
        anchors.append(subscribe.anchor)
        state = advance(state, Subscribed(refused=((subscribe.anchor, Failure(code="Http500")),)), now)
        now += 61
        state = advance(state, Waited(), now)
    assert anchors == ["ann", "ann", "ann", "bob"]


def test_a_refused_mailbox_does_not_delay_others_and_joins_while_the_stream_runs() -> None:
    state = advance(started(), Subscribed(ALL[:2], (("cat", failure(Verdict.SUSPEND)),)), now=1)
    assert state.actions == (Stream(ALL[:2], "ann"), Wait(61))
    state = advance(state, Waited(), now=61)
    assert state.actions == (Stream(ALL[:2], "ann"), Subscribe(("cat",), "ann", from_anchor=False))
    again = advance(state, Subscribed(refused=(("cat", failure(Verdict.SUSPEND)),)), now=62)
    assert again.actions == (Stream(ALL[:2], "ann"), Wait(62 + 120))
    state = advance(state, Subscribed((("cat", "3"),)), now=62)
    assert state.actions == (Stream(ALL, "ann"),)
    assert not state.members[2].suspended


def test_an_id_that_the_server_reuses_is_taken_from_its_former_owner() -> None:
    state = advance(streaming(), Joined(("dan",)), now=5)
    state = advance(state, Subscribed((("dan", "1"),)), now=6)
    assert state.live == (("bob", "2"), ("cat", "3"), ("dan", "1"))
    assert state.subscribe == Subscribe(("ann",), "ann", from_anchor=False)


def test_the_stream_is_reopened_at_once_without_a_bad_subscription() -> None:
    state = advance(streaming(), StreamEnded(5, (failure(Verdict.RESUBSCRIBE, "2"),)), now=10)
    assert state.actions == (Stream((ALL[0], ALL[2]), "ann"), Subscribe(("bob",), "ann", from_anchor=False))


def test_a_group_that_lost_all_subscriptions_starts_from_the_anchor_at_once() -> None:
    state = advance(streaming(), StreamEnded(5, (failure(Verdict.RESUBSCRIBE, "1", "2", "3"),)), now=10)
    assert state.actions == (Subscribe(("ann", "bob", "cat"), "ann", from_anchor=True),)
    unnamed = advance(streaming(), StreamEnded(5, (failure(Verdict.RESUBSCRIBE),)), now=10)
    assert unnamed.actions == (Subscribe(("ann", "bob", "cat"), "ann", from_anchor=True),)


def test_a_temporary_failure_of_one_subscription_keeps_it() -> None:
    transient = Failure(code="ErrorInternalServerError", subscription_ids=("2",))
    state = advance(streaming(), StreamEnded(5, (transient,)), now=10)
    assert state.actions == (Stream(ALL, "ann"),)


def test_a_failure_of_most_subscriptions_is_one_of_the_connection() -> None:
    busy = tuple(Failure(code="ErrorServerBusy", wait=5.0, subscription_ids=(i,)) for i in "123")
    state = advance(streaming(), StreamEnded(1, busy), now=10)
    assert state.live == ALL
    assert state.actions == (Wait(16),)
    assert not any(m.failures for m in state.members)


def test_an_unknown_id_does_not_cause_a_hot_loop() -> None:
    state = advance(streaming(), StreamEnded(0, (failure(Verdict.RESUBSCRIBE, "foreign"),)), now=10)
    state = advance(state, Subscribed(ALL), now=10)
    state = advance(state, StreamEnded(0, (failure(Verdict.RESUBSCRIBE, "foreign"),)), now=10)
    assert isinstance(state.actions[0], Wait)


def test_a_stream_that_is_denied_to_the_anchor_is_opened_in_another_name() -> None:
    state = advance(streaming(), StreamEnded(0, (failure(Verdict.SUSPEND),)), now=10)
    assert state.actions == (Stream(ALL, "bob"),)
    assert not any(m.suspended for m in state.members)


def test_a_group_whose_connection_is_refused_repeatedly_is_halved_until_each_mailbox_is_alone() -> None:
    """This happens with a server that allows one impersonated user for each connection."""
    state, now = streaming(), 10.0
    for _ in range(3):
        while isinstance(state.actions[-1], Wait):
            now = state.actions[-1].until
            state = advance(state, Waited(), now)
        state = advance(state, StreamEnded(0, (failure(Verdict.SUSPEND),)), now)
    assert state.split == Split(("cat",))
    state = advance(state, SplitDone(("cat",)), now)
    assert [m.mailbox for m in state.members] == ["ann", "bob"]


def test_a_denied_stream_of_a_single_mailbox_suspends_it() -> None:
    state = advance(GroupState.start(("ann",), POLICY), Subscribed(ALL[:1]), now=0)
    state = advance(state, StreamEnded(0, (failure(Verdict.SUSPEND),)), now=10)
    assert state.members[0].suspended
    assert state.actions == (Wait(70), Unsubscribe(ALL[:1], "ann"))


def test_a_subscription_that_fails_three_times_among_others_is_split_off() -> None:
    state, now = streaming(), 10.0
    for n in range(3):
        (bad,) = (m.subscription for m in state.members if m.mailbox == "bob")
        gone = Failure(code=failure(Verdict.RESUBSCRIBE).code, subscription_ids=(bad or "",))
        state = advance(state, StreamEnded(5, (gone,)), now)
        if n < 2:
            assert state.split is None
            assert state.members[1].due - now == 2 * n
            now += 60
            state = advance(state, Waited(), now)
            state = advance(state, Subscribed((("bob", f"new{n}"),)), now)
    assert state.actions == (Stream((ALL[0], ALL[2]), "ann"), Split(("bob",)))
    assert advance(state, SplitDone(("bob",)), now).actions == (Stream((ALL[0], ALL[2]), "ann"),)


def test_a_moved_mailbox_is_discovered_while_the_others_stream() -> None:
    others, bye = Stream((ALL[0], ALL[2]), "ann"), Unsubscribe(ALL[1:2], "ann")
    state = advance(streaming(), StreamEnded(5, (failure(Verdict.REGROUP, "2"),)), now=10)
    assert state.actions == (others, Discover(("bob",)), bye)
    stays = advance(state, Discovered(), now=11)
    assert stays.actions == (others, Subscribe(("bob",), "ann", from_anchor=False), bye)
    gone = advance(state, Discovered(gone=("bob",)), now=11)
    assert gone.actions == (others, bye)
    unknown = advance(state, Discovered(unknown=(("bob", Failure(code="Http503")),)), now=11)
    assert unknown.actions == (others, Wait(13), bye)
    assert advance(unknown, Waited(), now=13).actions[1] == Discover(("bob",))


def test_an_anchor_that_moves_away_is_replaced() -> None:
    state = advance(streaming(), Doubted(("ann",)), now=10)
    assert state.actions == (Stream(ALL[1:], "ann"), Discover(("ann",)), Unsubscribe(ALL[:1], "ann"))
    state = advance(state, Discovered(gone=("ann",)), now=11)
    assert state.anchor == "bob"
    state = advance(state, Unsubscribed(), now=11)
    state = advance(state, StreamEnded(1800), now=1811)
    assert state.actions == (Stream(ALL[1:], "bob"),)


def test_an_empty_group_ends_after_unsubscribing() -> None:
    state = advance(streaming(), Doubted(("ann", "bob", "cat")), now=10)
    state = advance(state, Discovered(gone=("ann", "bob", "cat")), now=11)
    assert state.actions == (Unsubscribe(ALL, "ann"),)
    assert advance(state, Unsubscribed(), now=12).actions == ()


def test_a_hundred_denied_anchors_cause_no_pause() -> None:
    names = tuple(f"user{n:03}" for n in range(101))
    state = GroupState.start(names, POLICY)
    for name in names[:100]:
        assert state.subscribe
        assert state.subscribe.anchor == name
        state = advance(state, Subscribed(refused=((name, failure(Verdict.SUSPEND)),)), now=0)
    assert state.actions == (Subscribe(names[100:], names[100], from_anchor=True),)


def test_a_suspended_mailbox_is_retried_slowly() -> None:
    state = advance(started(), Subscribed(refused=(("ann", failure(Verdict.STOP)),)), now=0)
    assert state.actions == (Wait(60),)
    state = advance(streaming(), StreamEnded(0, (failure(Verdict.STOP),)), now=0)
    assert state.actions == (Wait(60),)


def test_refused_credentials_are_retried_once_and_then_slowly() -> None:
    refused = StreamEnded(0, (failure(Verdict.CREDENTIALS),), alive=False)
    state = advance(streaming(), refused, now=0)
    assert state.actions == (Wait(1),)
    state = advance(advance(state, Waited(), now=1), refused, now=1)
    assert state.actions == (Wait(1 + 120),)


def test_a_busy_server_gets_no_new_requests_but_the_open_stream_stays() -> None:
    state = advance(started(), Subscribed(ALL[:2], (("cat", Failure(code="Http500")),)), now=0)
    state = advance(state, Waited(), now=1)
    state = advance(
        state, Subscribed(refused=(("cat", Failure(code="ErrorServerBusy", wait=30)),)), now=2, jitter=0
    )
    assert state.actions == (Stream(ALL[:2], "ann"), Wait(32))


def test_mailboxes_join_a_running_group() -> None:
    state = advance(streaming(), Joined(("bea", "ann")), now=5)
    assert state.actions == (Stream(ALL, "ann"), Subscribe(("bea",), "ann", from_anchor=False))
    assert [m.mailbox for m in state.members] == ["ann", "bea", "bob", "cat"]


def test_a_mailbox_that_leaves_during_its_subscribe_is_unsubscribed() -> None:
    state = advance(started(), Left(("ann",)), now=1)
    state = advance(state, Subscribed(ALL), now=2)
    assert state.actions == (Stream(ALL[1:], "bob"), Unsubscribe(ALL[:1], "bob"))
    state = advance(advance(started(), Left(("ann",)), now=1), Subscribed(ALL[1:]), now=2)
    assert state.actions == (Stream(ALL[1:], "bob"),)


def test_stop_unsubscribes_and_ends_the_group() -> None:
    state = advance(streaming(), Stop(unsubscribe=True), now=5)
    assert state.live == ()
    assert state.actions == (Unsubscribe(ALL, "ann"),)
    state = advance(state, StreamEnded(4), now=5)
    assert state.actions == (Unsubscribe(ALL, "ann"),)
    assert advance(state, Unsubscribed(), now=6).actions == ()
    assert advance(started(), Stop(unsubscribe=True), now=5).actions == ()


def test_stop_keeps_the_subscriptions_unless_it_must_unsubscribe() -> None:
    state = advance(streaming(), Stop(), now=5)
    assert (state.actions, state.live) == ((), ALL)


# --- saved subscriptions


def saved(*names: str, anchor: str = "ann", abandoned: tuple[tuple[str, str], ...] = ()) -> GroupState:
    known = SavedSubscriptions(anchor, {mailbox: id_ for mailbox, id_ in ALL if mailbox in names}, abandoned)
    return GroupState.start(("cat", "ann", "bob"), POLICY, known)


def test_with_saved_ids_the_stream_is_the_first_action() -> None:
    assert saved("ann", "bob", "cat").actions == (Stream(ALL, "ann"),)


def test_mailboxes_without_a_saved_id_are_subscribed_while_streaming_with_the_present_cookies() -> None:
    assert saved("ann", "cat").actions == (
        Stream((ALL[0], ALL[2]), "ann"),
        Subscribe(("bob",), "ann", from_anchor=False),
    )


def test_a_removed_anchor_is_replaced_and_the_subscriptions_stay() -> None:
    state = saved("bob", "cat", anchor="abe")
    assert state.actions[0] == Stream(ALL[1:], "bob")


def test_only_forgotten_subscriptions_are_renewed() -> None:
    state = advance(
        saved("ann", "bob", "cat"), StreamEnded(0.1, (failure(Verdict.RESUBSCRIBE, "2"),), alive=False), now=1
    )
    assert state.actions == (Stream((ALL[0], ALL[2]), "ann"), Subscribe(("bob",), "ann", from_anchor=False))


def test_a_server_that_forgot_all_subscriptions_gets_new_ones_at_once() -> None:
    state = advance(
        saved("ann", "bob", "cat"),
        StreamEnded(0.1, (failure(Verdict.RESUBSCRIBE, "1", "2", "3"),), alive=False),
        now=1,
    )
    assert state.actions == (Subscribe(("ann", "bob", "cat"), "ann", from_anchor=True),)


def test_a_group_with_only_abandoned_subscriptions_unsubscribes_them_and_ends() -> None:
    state = GroupState.start((), POLICY, SavedSubscriptions("ann", {}, ALL))
    assert state.actions == (Unsubscribe(ALL, "ann"),)
    assert advance(state, Unsubscribed(), now=1).actions == ()


# --- abandoned subscriptions


def test_a_removed_mailbox_is_unsubscribed_while_the_others_stream() -> None:
    state = advance(streaming(), Left(("ann",)), now=5)
    assert state.actions == (Stream(ALL[1:], "bob"), Unsubscribe(ALL[:1], "bob"))
    assert advance(state, Unsubscribed(), now=6).actions == (Stream(ALL[1:], "bob"),)


def test_subscriptions_abandoned_during_an_unsubscribe_are_next() -> None:
    state = advance(streaming(), Left(("ann",)), now=5)
    state = advance(state, Left(("bob",)), now=6)
    assert state.unsubscribe == Unsubscribe(ALL[:1], "bob")
    state = advance(state, Unsubscribed(), now=7)
    assert state.unsubscribe == Unsubscribe(ALL[1:2], "cat")


def test_a_stream_whose_mailboxes_all_moved_abandons_all_subscriptions() -> None:
    misplaced = StreamEnded(5, (failure(Verdict.REGROUP),))
    state = advance(streaming(), misplaced, now=10)
    assert state.actions == (Discover(("ann", "bob", "cat")), Unsubscribe(ALL, "ann"))


def test_a_doubted_subscription_is_unsubscribed_unless_another_mailbox_has_its_id() -> None:
    assert advance(streaming(), Doubted(("bob",)), now=5).abandoned == (("bob", "2"),)
    assert advance(streaming(), Doubted(("bob",), taken=True), now=5).abandoned == ()
    state = advance(streaming(), Joined(("dan",)), now=5)
    assert advance(state, Subscribed((("dan", "1"),)), now=6).abandoned == ()


def test_forgotten_subscriptions_are_not_unsubscribed() -> None:
    forgotten = failure(Verdict.RESUBSCRIBE, "1", "2")
    assert advance(streaming(), StreamEnded(5, (forgotten,)), now=10).abandoned == (("cat", "3"),)
    everything = failure(Verdict.RESUBSCRIBE)
    assert advance(streaming(), StreamEnded(5, (everything,)), now=10).abandoned == ()


def test_nothing_is_unsubscribed_during_a_requested_pause() -> None:
    busy = Failure(code="ErrorServerBusy", wait=30)
    state = advance(streaming(), StreamEnded(5, (busy,)), now=10)
    state = advance(state, Left(("ann",)), now=11)
    assert state.unsubscribe is None
    assert advance(state, Waited(), now=42).unsubscribe == Unsubscribe(ALL[:1], "bob")


failures = st.builds(
    Failure,
    code=st.sampled_from([*VERDICTS, "ErrorNobodyHeardOf"]),
    wait=st.one_of(st.none(), st.floats(0, 1000)),
)


class GroupLifecycle(RuleBasedStateMachine):
    """With any replies in any order, the group always continues and never loses a mailbox."""

    @initialize(count=st.integers(1, 6), known=st.sets(st.integers(0, 7)))
    def begin(self, count: int, known: set[int]) -> None:
        self.now = 0.0
        self.made = 8
        self.mailboxes = {f"user{n}" for n in range(count)}
        before = {f"user{n}": str(n) for n in known}
        gone = tuple((mailbox, id_) for mailbox, id_ in before.items() if mailbox not in self.mailboxes)
        before = {mailbox: id_ for mailbox, id_ in before.items() if mailbox in self.mailboxes}
        self.state = GroupState.start(
            tuple(self.mailboxes), POLICY, SavedSubscriptions("user0", before, gone)
        )

    def advance(self, outcome: object, jitter: float) -> None:
        self.state = advance(self.state, outcome, self.now, jitter)  # type: ignore[arg-type]

    @precondition(lambda self: self.state.subscribe)
    @rule(data=st.data(), jitter=st.floats(0, 1))
    def subscribed(self, data: st.DataObject, jitter: float) -> None:
        assert self.state.subscribe
        ids, refused = [], []
        for mailbox in self.state.subscribe.mailboxes:
            match data.draw(st.sampled_from(["ok", "refused", "untried"])):
                case "ok":
                    self.made += 1
                    ids.append((mailbox, str(self.made)))
                case "refused":
                    refused.append((mailbox, data.draw(failures)))
        self.advance(Subscribed(tuple(ids), tuple(refused)), jitter)

    @precondition(lambda self: self.state.stream)
    @rule(data=st.data(), duration=st.floats(0, 1800), jitter=st.floats(0, 1))
    def stream_ended(self, data: st.DataObject, duration: float, jitter: float) -> None:
        ids = [i for _, i in self.state.live] + ["foreign"]
        ended = data.draw(st.lists(failures, max_size=2))
        named = [replace_ids(f, data.draw(st.sets(st.sampled_from(ids)))) for f in ended]
        self.now += duration
        self.advance(StreamEnded(duration, tuple(named), data.draw(st.booleans())), jitter)

    @precondition(lambda self: any(isinstance(a, Wait) for a in self.state.actions))
    @rule()
    def waited(self) -> None:
        (wait,) = (a for a in self.state.actions if isinstance(a, Wait))
        self.now = max(self.now, wait.until)
        self.advance(Waited(), 1.0)

    @precondition(lambda self: self.state.discover)
    @rule(data=st.data())
    def discovered(self, data: st.DataObject) -> None:
        assert self.state.discover
        gone, unknown = [], []
        for mailbox in self.state.discover.mailboxes:
            match data.draw(st.sampled_from(["stays", "gone", "unknown"])):
                case "gone":
                    gone.append(mailbox)
                case "unknown":
                    unknown.append((mailbox, data.draw(failures)))
        self.mailboxes -= set(gone)
        self.advance(Discovered(tuple(gone), tuple(unknown)), 1.0)

    @precondition(lambda self: self.state.split)
    @rule()
    def split_off(self) -> None:
        assert self.state.split
        self.mailboxes -= set(self.state.split.mailboxes)
        self.advance(SplitDone(self.state.split.mailboxes), 1.0)

    @precondition(lambda self: self.state.unsubscribe)
    @rule()
    def unsubscribed(self) -> None:
        self.advance(Unsubscribed(), 1.0)

    @rule(name=st.sampled_from(["user0", "user1"]), taken=st.booleans())
    def doubted(self, name: str, *, taken: bool) -> None:
        self.advance(Doubted((name,), taken), 1.0)

    @rule(name=st.sampled_from(["user0", "user1", "zed"]))
    def left(self, name: str) -> None:
        self.mailboxes.discard(name)
        self.advance(Left((name,)), 1.0)

    @rule(name=st.sampled_from(["zed", "abe"]))
    def joined(self, name: str) -> None:
        self.mailboxes.add(name)
        self.advance(Joined((name,)), 1.0)

    @invariant()
    def there_is_always_an_action(self) -> None:
        assert self.state.actions or not self.mailboxes
        assert len({type(a) for a in self.state.actions}) == len(self.state.actions)

    @invariant()
    def each_mailbox_is_subscribed_or_scheduled(self) -> None:
        state = self.state
        assert {m.mailbox for m in state.members} == self.mailboxes
        scheduled = {
            mailbox for a in (state.subscribe, state.discover, state.split) if a for mailbox in a.mailboxes
        }
        waits = any(isinstance(action, Wait) for action in state.actions)
        for member in state.members:
            worker = state.discover if member.misplaced else state.subscribe
            assert member.subscription or member.mailbox in scheduled or waits or worker

    @invariant()
    def no_live_subscription_is_abandoned(self) -> None:
        unsubscribing = self.state.unsubscribe.subscriptions if self.state.unsubscribe else ()
        assert not {*self.state.abandoned, *unsubscribing}.intersection(self.state.live)

    @invariant()
    def the_stream_carries_exactly_the_live_subscriptions(self) -> None:
        if self.state.stream:
            assert self.state.live
            if self.state.paused_until is None:
                assert self.state.stream.subscriptions == self.state.live
        if self.state.subscribe and self.state.subscribe.from_anchor:
            assert self.state.subscribe.mailboxes[0] == self.state.subscribe.anchor


def replace_ids(failure: Failure, ids: set[str]) -> Failure:
    return Failure(code=failure.code, wait=failure.wait, subscription_ids=tuple(sorted(ids)))


TestGroupLifecycle = GroupLifecycle.TestCase


@given(st.permutations(["ann", "bob", "cat"]))
def test_the_order_of_mailboxes_does_not_matter(names: list[str]) -> None:
    assert GroupState.start(tuple(names), POLICY) == started()


# --- unknown codes, refused affinity, unreadable mailboxes

STRANGE = Failure(code="ErrorSomethingStrange")
ELSEWHERE = ("ErrorProxyRequestNotAllowed", "ErrorReadEventsFailed", "ErrorMailboxMoveInProgress")


@pytest.mark.parametrize("alive", [True, False])
def test_an_unknown_code_on_the_stream_of_a_single_mailbox_is_retried_with_growing_delay(
    alive: bool,
) -> None:
    state = advance(GroupState.start(("ann",), POLICY), Subscribed((("ann", "1"),)), 0)
    now, pauses = 0.0, []
    for _ in range(12):
        state = advance(state, StreamEnded(1.0, (STRANGE,), alive=alive), now)
        assert state.paused_until is not None
        pauses.append(state.paused_until - now)
        now = state.paused_until
        state = advance(state, Waited(), now)
    assert pauses[0] <= POLICY.backoff.cap
    assert pauses[-1] > 10 * POLICY.backoff.cap
    assert pauses[-1] <= POLICY.suspended.cap


def test_an_unknown_code_of_one_mailbox_is_retried_with_growing_delay() -> None:
    state = advance(started(), Subscribed((("ann", "1"), ("cat", "3"))), 0)
    now, pauses = 0.0, []
    for _ in range(12):
        state = advance(state, Subscribed(refused=(("bob", STRANGE),)), now)
        (bob,) = [member for member in state.members if member.mailbox == "bob"]
        assert not bob.suspended
        pauses.append(bob.due - now)
        now = bob.due
        state = advance(state, Waited(), now)
    assert pauses[0] <= POLICY.backoff.first
    assert pauses[-1] > 10 * POLICY.backoff.cap


def refused_elsewhere(closed: bool) -> list[Action]:
    """Return the actions after three misplacement failures of bob and cat, with different codes."""
    state = GroupState.start(("ann", "bob", "cat"), POLICY, closed=closed)
    state = advance(state, Subscribed((("ann", "1"),)), 0)
    now = 0.0
    for code in ELSEWHERE:
        assert not any(isinstance(action, Split) for action in state.actions)
        refused = (("bob", Failure(code=code)), ("cat", Failure(code=code)))
        state = advance(state, Subscribed(refused=refused), now)
        now += 3600
        state = advance(state, Waited(), now)
        if any(isinstance(action, Discover) for action in state.actions):
            state = advance(state, Discovered(), now)
    return list(state.actions)


def test_mailboxes_refused_by_the_anchors_back_end_are_split_off_together_and_then_alone() -> None:
    assert Split(("bob", "cat")) in refused_elsewhere(closed=False)
    assert Split(("bob", "cat"), each=True) in refused_elsewhere(closed=True)


def test_a_group_that_is_refused_entirely_is_not_split() -> None:
    """For example, while a database is moved. A split would not help."""
    state, now = GroupState.start(("ann", "bob", "cat"), POLICY), 0.0
    for _ in range(20):
        for action in state.actions:
            assert not isinstance(action, Split)
            if isinstance(action, Subscribe):
                refused = tuple((m, Failure(code=ELSEWHERE[0])) for m in action.mailboxes[:1])
                state = advance(state, Subscribed(refused=refused), now)
            elif isinstance(action, Discover):
                state = advance(state, Discovered(), now)
        now += 3600
        state = advance(state, Waited(), now)
    assert len(state.members) == 3


def test_a_mailbox_that_cannot_be_read_is_suspended_and_unsubscribed() -> None:
    state = advance(started(), Subscribed((("ann", "1"), ("bob", "2"), ("cat", "3"))), 0)
    denied = Failure(code="ErrorAccessDenied")
    state = advance(state, Denied("bob", denied), 10)
    assert state.live == (("ann", "1"), ("cat", "3"))
    assert state.members[1].suspended
    assert state.unsubscribe == Unsubscribe((("bob", "2"),), "ann")
    assert advance(state, Denied("bob", denied), 10) == state, "it has no subscription any more"
