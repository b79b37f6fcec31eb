"""Catching up: whose turn it is, what is joined, what is said; and how it goes on in another process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from listener.catchup.catchup import CatchUp, Gap
from listener.catchup.delay_queue import DelayQueue
from listener.event import MailboxEvent
from listener.ews.codes import Failure
from tests.virtual.office import MemoryStates, Office, office, ready
from tests.virtual.wire import clock

SENDER = "ben@example.org"


# --- turns


async def test_whoever_is_due_first_comes_first(autojump_clock: trio.testing.MockClock) -> None:
    delay_queue, taken = DelayQueue(), []
    for mailbox, when in (("late", 30.0), ("soon", 10.0), ("dropped", 5.0), ("now", 0.0)):
        delay_queue.put(mailbox, when)
    delay_queue.drop("dropped")

    async def worker() -> None:
        while True:
            taken.append((await delay_queue.take(), trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker)
        await trio.sleep(20)
        delay_queue.hasten("late", 25.0)
        delay_queue.hasten("nobody", 25.0)
        delay_queue.put("late", 100.0)  # it stays with the earlier time
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert taken == [("now", 0.0), ("soon", 10.0), ("late", 25.0)]


async def test_nobody_is_taken_twice(autojump_clock: trio.testing.MockClock) -> None:
    delay_queue, taken = DelayQueue(), []

    async def worker() -> None:
        while True:
            taken.append(await delay_queue.take())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(worker)
        await trio.sleep(1)
        for number in range(10):
            delay_queue.put(f"{number}", trio.current_time() + 10 - number)
            delay_queue.put(f"{number}", trio.current_time() + 20)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert sorted(taken) == [f"{number}" for number in range(10)]


async def test_of_all_who_wait_one_is_woken(autojump_clock: trio.testing.MockClock) -> None:
    delay_queue = DelayQueue()

    class Steps(trio.abc.Instrument):
        taken = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.taken += task.name == "worker"

    async def worker() -> None:
        await delay_queue.take()

    steps = Steps()
    delay_queue.put("first", 10.0)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(worker, name="worker")
        await trio.sleep(1)
        trio.lowlevel.add_instrument(steps)
        for number in range(50):
            delay_queue.put(f"{number}", 20.0 + number)
            await trio.sleep(0.01)
        trio.lowlevel.remove_instrument(steps)
        nursery.cancel_scope.cancel()
    assert steps.taken <= 50


def test_gaps_are_joined() -> None:
    start, lost, again = (
        Gap(None, {"start": None}),
        Gap(20.0, {"lost": None}, told=True),
        Gap(50.0, {"lost": None}),
    )
    assert start.joined(None) is start
    assert lost.joined(again) == Gap(20.0, {"lost": None}, told=True)
    before = Gap(None, {"start": None}, before=True)
    assert again.joined(before) == Gap(50.0, {"lost": None, "start": None}, before=True)
    assert again.joined(lost).since == 20.0
    # What handlers have not been told of must be told.
    assert lost.joined(Gap(30.0, {"missed": None})) == Gap(20.0, {"lost": None, "missed": None}, told=False)
    assert start.joined(lost) == Gap(20.0, {"start": None, "lost": None}, told=False)


# --- side by side


async def test_so_many_mailboxes_side_by_side(autojump_clock: trio.testing.MockClock) -> None:
    most = under_way = 0
    async with office(mailboxes=20, concurrency=3, builders=0) as one:

        async def call(body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            try:
                return await Office.call(one, body, headers, read)
            finally:
                under_way -= 1

        one.call = call  # type: ignore[method-assign, assignment]
        for mailbox in one.exchange.directory:
            one.catch_up.gap(mailbox.address, None, "start")
        await one.settle()
        assert one.asked["FindFolder"] == 20
        assert most == 3


async def test_a_gap_does_not_wait_for_first_states(autojump_clock: trio.testing.MockClock) -> None:
    async with office(mailboxes=20) as one:
        one.delay = 5.0
        mailboxes = [mailbox.address for mailbox in one.exchange.directory]
        for mailbox in one.exchange.directory:
            await one.keep(mailbox.deliver("old", SENDER, clock()))
            one.catch_up.gap(mailbox.address, None, "start")
        await one.settle(50)
        built = one.asked["SyncFolderItems"]
        assert 0 < built < 20
        one.catch_up.gap(mailboxes[-1], trio.current_time(), "lost")
        await one.settle(20)
        assert [kind for kind, _ in one.lifecycle] == ["gap", "recovered"]
        # The states are built on from where they were.
        await one.settle(3600)
        assert one.asked["SyncFolderItems"] >= 20
        assert len(one.logged("catchup.ready")) >= 20


async def test_a_first_state_goes_on_page_by_page(autojump_clock: trio.testing.MockClock) -> None:
    async with office() as one:
        for number in range(1200):
            await one.keep(one.mailbox.deliver(f"{number}", SENDER, clock()))
        one.fail["SyncFolderItems"] = [Failure(code="ErrorInternalServerError")] * 2
        one.gap(None, "start")
        await one.settle(120)
        # Three pages, two failures.
        assert one.asked["SyncFolderItems"] == 5
        assert one.handed == []


async def test_a_folder_whose_state_cannot_be_had_is_passed_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with office() as one:
        box = one.mailbox
        await one.keep(box.deliver("old", SENDER, clock()))
        await one.keep(box.save(box.distinguished("drafts"), "IPM.Note", "old", clock()))
        one.fail["SyncFolderItems"] = [Failure(code="ErrorAccessDenied")]
        one.gap(None, "start")
        await one.settle()
        assert one.asked["SyncFolderItems"] == 2
        assert len(one.logged("catchup.folder_skipped")) == 1
        assert one.logged("catchup.ready")


@pytest.mark.parametrize("code", ["Http503", "Http401", "Http403", "ErrorImpersonateUserDenied"])
async def test_a_passing_failure_leaves_no_folder_without_a_state(
    autojump_clock: trio.testing.MockClock, code: str
) -> None:
    async with office() as one:
        for number in range(600):  # more than a page
            await one.keep(one.mailbox.deliver(f"{number}", SENDER, clock()))
        one.fail["SyncFolderItems"] = [Failure(code=code)] * 5
        one.gap(None, "start")
        await one.settle(4 * 3600)
        assert not one.fail["SyncFolderItems"]
        one.clear()
        # The sweep sees what the stream kept back.
        await one.keep(one.mailbox.deliver("kept back", SENDER, clock()))
        await one.settle(3 * 3600)
        told = {kind for kind, _ in one.told}
        assert told >= {"item.created", "item.new_mail"}


async def test_a_mailbox_that_left_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with ready(interval=900) as one:
        await one.happen(one.mailbox.deliver("mail", SENDER, clock()))
        one.catch_up.drop(one.mailbox.address)
        one.clear()
        await trio.sleep(86400)
        assert not one.asked
        assert len(one.catch_up.delivered) == 0


async def test_a_mailbox_that_left_while_it_was_worked_on_is_left_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready(interval=900) as one:
        one.delay = 5.0
        one.gap(trio.current_time())
        await one.settle(2)
        one.catch_up.drop(one.mailbox.address)
        await one.settle(600)  # what is under way comes to its end
        one.clear()
        await trio.sleep(86400)
        assert not one.asked
        assert one.catch_up.lagging(trio.current_time()) == 0


# --- from one process to the next


async def restart(one: Office) -> CatchUp:
    """What another process would begin with."""
    return CatchUp(routes=one, states=one.states, kinds=one.kinds, now=one.now)


async def test_another_process_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        box, drafts = one.mailbox, one.mailbox.distinguished("drafts")
        await one.happen(box.deliver("told", SENDER, clock()))
        (told,) = box.latest(box.distinguished("inbox"), 1)
        journal = list(one.events)
        await one.keep(box.save(drafts, "IPM.Note", "missed", clock()))
        await one.keep(box.purge(told, clock()))
        (missed,) = box.latest(drafts, 1)
        one.catch_up = await restart(one)
        async with trio.open_nursery() as nursery:
            one.catch_up.note(journal)
            one.gap(None, "start")
            nursery.start_soon(one.catch_up.run)
            await one.settle()
            nursery.cancel_scope.cancel()
        items = [(type_, id_) for type_, id_ in one.told if type_.startswith("item.")]
        assert sorted(items) == sorted([("item.created", missed.id), ("item.deleted", told.id)])
        assert one.lost() == []
        kind, reason = one.lifecycle[0]
        assert (kind, (reason or "")[:11]) == ("gap", "start: from")
        # It was compared a minute ago.
        assert "08:06:4" in (reason or "")


class Crashing(MemoryStates):
    """The process ends after so many writes."""

    def __init__(self, publish: Callable[[Sequence[MailboxEvent]], Any], writes: int) -> None:
        super().__init__(publish)
        self.writes = writes
        self.crashed = trio.Event()

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        if not self.writes:
            self.crashed.set()
            await trio.sleep_forever()
        self.writes -= 1
        await super().save(mailbox, events, changes)


@pytest.mark.parametrize("writes", range(7))
async def test_a_crash_at_any_write_loses_nothing(
    writes: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with ready() as one:
        box, inbox = one.mailbox, one.mailbox.distinguished("inbox")
        (first,) = box.latest(inbox, 1)
        since = trio.current_time()
        await one.keep(box.create_folder("new", inbox, clock()))
        await one.keep(box.deliver("missed", SENDER, clock()))
        await one.keep(box.move(first, box.own_folders()[0], clock()))
        crashing = Crashing(one.publish, writes)
        crashing._kept = one.states._kept
        one.catch_up.states = crashing
        one.gap(since)
        await one.settle()
        one.catch_up = await restart(one)
        one.gap(None, "start")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.catch_up.run)
            await one.settle()
            nursery.cancel_scope.cancel()
        assert one.lost() == []


async def test_an_error_of_the_journal_is_no_end(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:

        class Full(MemoryStates):
            failing = 2

            async def save(
                self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
            ) -> None:
                if self.failing:
                    self.failing -= 1
                    raise OSError("no space left on device")
                await super().save(mailbox, events, changes)

        full = Full(one.publish)
        full._kept = one.states._kept
        one.catch_up.states = full
        since = trio.current_time()
        await one.keep(one.mailbox.deliver("missed", SENDER, clock()))
        one.gap(since)
        await one.settle(300)
        assert one.lost() == []
        assert len(one.logged("catchup.crashed")) == 2
        one.log.clear()


async def test_a_mailbox_whose_events_lack_their_ids_is_compared_soon_but_not_all_the_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready(interval=100_000.0) as one:
        mailbox = next(iter(one.exchange.directory))
        mailbox.deliver("second", SENDER, clock())  # and the event of it had no id
        one.catch_up.gap(mailbox.address, trio.current_time(), "EventWithoutId")
        await trio.sleep(20)
        assert "exchange.item.created" in [event.type for _, event in one.handed]
        before = one.asked["FindFolder"]
        for _ in range(600):
            one.catch_up.gap(mailbox.address, trio.current_time(), "EventWithoutId")
            await trio.sleep(1)
        assert 8 <= one.asked["FindFolder"] - before <= 11
        await trio.sleep(61)
        one.clear()
        mailbox.deliver("third", SENDER, clock())
        one.catch_up.gap(mailbox.address, trio.current_time(), "EventWithoutId")
        one.catch_up.gap(mailbox.address, trio.current_time(), "lost")  # another reason does not wait
        await trio.sleep(10)
        assert "exchange.item.created" in [event.type for _, event in one.handed]
