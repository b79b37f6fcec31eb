from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from listener.delivery.mailbox_queues import MailboxQueues
from listener.event import MailboxEvent
from listener.journal import Entry


def entry(position: int, mailbox: str) -> Entry:
    return Entry(
        position, MailboxEvent(type="exchange.item.created", mailbox=mailbox, time="t", item_id=str(position))
    )


A1, A2, B3 = entry(1, "ann"), entry(2, "ann"), entry(3, "bob")


def test_queue_advances_when_its_first_event_is_finished() -> None:
    queues = MailboxQueues()
    queues.put([A1, A2, B3])
    assert queues.take() == (A1, 0)
    assert queues.take() == (B3, 0)
    assert queues.take() is None
    queues.finish(A1)
    queues.release("ann")
    assert queues.take() == (A2, 0)
    assert len(queues) == 2


def test_delayed_event_blocks_only_its_own_queue() -> None:
    queues = MailboxQueues()
    queues.put([A1, A2, B3])
    queues.take()
    queues.delay(A1, until=10)
    assert queues.take() == (B3, 0)
    assert queues.take() is None
    assert queues.next_due == 10
    assert queues.wake_due(9) == 0
    assert queues.wake_due(10) == 1
    assert queues.take() == (A1, 1)


def test_batch_takes_whole_queues_up_to_its_size() -> None:
    queues = MailboxQueues()
    queues.put([A1, B3, A2])
    assert queues.take_batch(10) == [A1, A2, B3]
    assert queues.take_batch(10) == []
    for one in (A1, A2, B3):
        queues.finish(one)
    for mailbox in ("ann", "bob"):
        queues.release(mailbox)
    assert len(queues) == 0
    queues.put([entry(4, "ann")])
    assert queues.take_batch(1) == [entry(4, "ann")]


def test_reset_makes_every_queue_ready_that_is_not_delayed() -> None:
    queues = MailboxQueues()
    queues.put([A1, A2, B3])
    queues.take()
    queues.delay(A1, until=10)
    queues.take()
    queues.reset()
    assert queues.take() == (B3, 0)
    assert queues.take() is None


class AnyOrder(RuleBasedStateMachine):
    """Whatever the handler does, each event is finished once, in the order of its mailbox."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = MailboxQueues()
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
        self.queues.put(entries)

    @rule()
    def take(self) -> None:
        if taken := self.queues.take():
            assert taken[0].event.mailbox not in {t.event.mailbox for t in self.taken}
            self.taken.append(taken[0])

    @rule()
    def finish(self) -> None:
        if self.taken:
            one = self.taken.pop()
            self.queues.finish(one)
            self.queues.release(one.event.mailbox)
            self.done[one.event.mailbox].append(one.position)

    @rule(seconds=st.floats(0, 10))
    def fail(self, seconds: float) -> None:
        if self.taken:
            self.queues.delay(self.taken.pop(0), self.now + seconds)

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.queues.wake_due(self.now)

    @rule()
    def break_down(self) -> None:
        self.taken.clear()
        self.queues.reset()

    @invariant()
    def order_is_kept(self) -> None:
        for mailbox, positions in self.done.items():
            assert positions == self.put_in[mailbox][: len(positions)]
        assert len(self.queues) == self.position - sum(map(len, self.done.values()))

    def teardown(self) -> None:
        for one in self.taken:
            self.queues.finish(one)
            self.queues.release(one.event.mailbox)
        self.queues.wake_due(float("inf"))
        while taken := self.queues.take():
            self.queues.finish(taken[0])
            self.queues.release(taken[0].event.mailbox)
        assert len(self.queues) == 0


TestAnyOrder = AnyOrder.TestCase


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(1, 5))
def test_batches_keep_the_order_of_each_mailbox(mailboxes: list[str], most: int) -> None:
    queues = MailboxQueues()
    entries = [entry(n, mailbox) for n, mailbox in enumerate(mailboxes)]
    queues.put(entries)
    done: list[Entry] = []
    while batch := queues.take_batch(most):
        assert len(batch) <= most
        for one in batch:
            queues.finish(one)
        for mailbox in dict.fromkeys(one.event.mailbox for one in batch):
            queues.release(mailbox)
        done += batch
    assert sorted(done, key=lambda one: one.position) == entries
    for mailbox in "abc":
        line = [one.position for one in done if one.event.mailbox == mailbox]
        assert line == sorted(line)
