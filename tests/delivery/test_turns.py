from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from listener.delivery.turns import Turns
from listener.event import MailboxEvent
from listener.journal import Entry


def entry(position: int, mailbox: str) -> Entry:
    return Entry(
        position, MailboxEvent(type="exchange.item.created", mailbox=mailbox, time="t", item_id=str(position))
    )


A1, A2, B3 = entry(1, "ann"), entry(2, "ann"), entry(3, "bob")


def test_a_line_moves_on_when_its_first_is_done_and_others_do_not_wait_for_it() -> None:
    turns = Turns()
    turns.put([A1, A2, B3])
    assert turns.take() == (A1, 0)
    assert turns.take() == (B3, 0)
    assert turns.take() is None
    turns.done(A1)
    turns.next_in("ann")
    assert turns.take() == (A2, 0)
    assert len(turns) == 2


def test_what_waits_to_be_tried_again_holds_up_its_own_line_only() -> None:
    turns = Turns()
    turns.put([A1, A2, B3])
    turns.take()
    turns.wait(A1, until=10)
    assert turns.take() == (B3, 0)
    assert turns.take() is None
    assert turns.next_due == 10
    assert turns.wake(9) == 0
    assert turns.wake(10) == 1
    assert turns.take() == (A1, 1)


def test_a_batch_takes_whole_lines_as_far_as_it_goes() -> None:
    turns = Turns()
    turns.put([A1, B3, A2])
    assert turns.take_batch(10) == [A1, A2, B3]
    assert turns.take_batch(10) == []
    for one in (A1, A2, B3):
        turns.done(one)
    for mailbox in ("ann", "bob"):
        turns.next_in(mailbox)
    assert len(turns) == 0
    turns.put([entry(4, "ann")])
    assert turns.take_batch(1) == [entry(4, "ann")]


def test_after_a_breakdown_everything_that_does_not_wait_is_ready_again() -> None:
    turns = Turns()
    turns.put([A1, A2, B3])
    turns.take()
    turns.wait(A1, until=10)
    turns.take()
    turns.start_over()
    assert turns.take() == (B3, 0)
    assert turns.take() is None


class AnyOrder(RuleBasedStateMachine):
    """However the handler behaves, each mailbox's events are done once each, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()
        self.now = 0.0
        self.put_in: defaultdict[str, list[int]] = defaultdict(list)
        self.done: defaultdict[str, list[int]] = defaultdict(list)
        self.taken: list[Entry] = []
        self.position = 0

    @rule(mailboxes=st.lists(st.sampled_from("abc"), max_size=5))
    def put(self, mailboxes: list[str]) -> None:
        entries = []
        for mailbox in mailboxes:
            self.position += 1
            entries.append(entry(self.position, mailbox))
            self.put_in[mailbox].append(self.position)
        self.turns.put(entries)

    @rule()
    def take(self) -> None:
        if taken := self.turns.take():
            assert taken[0].event.mailbox not in {t.event.mailbox for t in self.taken}
            self.taken.append(taken[0])

    @rule()
    def finish(self) -> None:
        if self.taken:
            one = self.taken.pop()
            self.turns.done(one)
            self.turns.next_in(one.event.mailbox)
            self.done[one.event.mailbox].append(one.position)

    @rule(seconds=st.floats(0, 10))
    def fail(self, seconds: float) -> None:
        if self.taken:
            self.turns.wait(self.taken.pop(0), self.now + seconds)

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.turns.wake(self.now)

    @rule()
    def break_down(self) -> None:
        self.taken.clear()
        self.turns.start_over()

    @invariant()
    def order_is_kept(self) -> None:
        for mailbox, positions in self.done.items():
            assert positions == self.put_in[mailbox][: len(positions)]
        assert len(self.turns) == self.position - sum(map(len, self.done.values()))

    def teardown(self) -> None:
        for one in self.taken:
            self.turns.done(one)
            self.turns.next_in(one.event.mailbox)
        self.turns.wake(float("inf"))
        while taken := self.turns.take():
            self.turns.done(taken[0])
            self.turns.next_in(taken[0].event.mailbox)
        assert len(self.turns) == 0


TestAnyOrder = AnyOrder.TestCase


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(1, 5))
def test_batches_keep_the_order_of_each_mailbox(mailboxes: list[str], most: int) -> None:
    turns = Turns()
    entries = [entry(n, mailbox) for n, mailbox in enumerate(mailboxes)]
    turns.put(entries)
    done: list[Entry] = []
    while batch := turns.take_batch(most):
        assert len(batch) <= most
        for one in batch:
            turns.done(one)
        for mailbox in dict.fromkeys(one.event.mailbox for one in batch):
            turns.next_in(mailbox)
        done += batch
    assert sorted(done, key=lambda one: one.position) == entries
    for mailbox in "abc":
        line = [one.position for one in done if one.event.mailbox == mailbox]
        assert line == sorted(line)
