"""Catch-up: its delay queue, joined gaps, concurrency, and how another process continues."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from listener.catchup.catchup import CatchUp
from listener.catchup.delay_queue import DelayQueue
from listener.catchup.mailbox_state import Gap
from listener.event import MailboxEvent
from listener.ews.codes import Failure
from tests.virtual.harness import CatchUpHarness, MemoryStates, open_harness, ready_harness
from tests.virtual.wire import clock

SENDER = "ben@example.org"


# --- delay queue


async def test_mailboxes_are_taken_in_order_of_due_time(autojump_clock: trio.testing.MockClock) -> None:
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
        delay_queue.hasten("unknown", 25.0)
        delay_queue.put("late", 100.0)  # the earlier time stays
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert taken == [("now", 0.0), ("soon", 10.0), ("late", 25.0)]


async def test_no_mailbox_is_taken_twice(autojump_clock: trio.testing.MockClock) -> None:
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


async def test_only_one_waiting_worker_is_woken(autojump_clock: trio.testing.MockClock) -> None:
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
        Gap(20.0, {"lost": None}, reported=True),
        Gap(50.0, {"lost": None}),
    )
    assert start.joined(None) is start
    assert lost.joined(again) == Gap(20.0, {"lost": None}, reported=True)
    before = Gap(None, {"start": None}, before_start=True)
    assert again.joined(before) == Gap(50.0, {"lost": None, "start": None}, before_start=True)
    assert again.joined(lost).since == 20.0
    # Reasons that handlers do not know yet must be reported.
    assert lost.joined(Gap(30.0, {"missed": None})) == Gap(
        20.0, {"lost": None, "missed": None}, reported=False
    )
    assert start.joined(lost) == Gap(20.0, {"start": None, "lost": None}, reported=False)


# --- concurrency and failures


async def test_concurrency_limits_the_mailboxes_compared_at_the_same_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    most = under_way = 0
    async with open_harness(mailboxes=20, concurrency=3, builders=0) as harness:

        async def call(body: bytes, headers: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            try:
                return await CatchUpHarness.call(harness, body, headers, read)
            finally:
                under_way -= 1

        harness.call = call  # type: ignore[method-assign, assignment]
        for mailbox in harness.exchange.directory:
            harness.catch_up.gap(mailbox.address, None, "start")
        await harness.settle()
        assert harness.requests["FindFolder"] == 20
        assert most == 3


async def test_gap_does_not_wait_for_first_sync_states(autojump_clock: trio.testing.MockClock) -> None:
    async with open_harness(mailboxes=20) as harness:
        harness.delay = 5.0
        mailboxes = [mailbox.address for mailbox in harness.exchange.directory]
        for mailbox in harness.exchange.directory:
            await harness.hold_back(mailbox.deliver("old", SENDER, clock()))
            harness.catch_up.gap(mailbox.address, None, "start")
        await harness.settle(50)
        built = harness.requests["SyncFolderItems"]
        assert 0 < built < 20
        harness.catch_up.gap(mailboxes[-1], trio.current_time(), "lost")
        await harness.settle(20)
        assert [kind for kind, _ in harness.listener_events] == ["gap", "recovered"]
        # Building the SyncStates continues where it stopped.
        await harness.settle(3600)
        assert harness.requests["SyncFolderItems"] >= 20
        assert len(harness.logged("catchup.ready")) >= 20


async def test_first_sync_state_is_continued_page_by_page(autojump_clock: trio.testing.MockClock) -> None:
    async with open_harness() as harness:
        for number in range(1200):
            await harness.hold_back(harness.mailbox.deliver(f"{number}", SENDER, clock()))
        harness.failures["SyncFolderItems"] = [Failure(code="ErrorInternalServerError")] * 2
        harness.gap(None, "start")
        await harness.settle(120)
        # Three pages, two failures.
        assert harness.requests["SyncFolderItems"] == 5
        assert harness.published == []


async def test_folder_without_a_readable_sync_state_is_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_harness() as harness:
        box = harness.mailbox
        await harness.hold_back(box.deliver("old", SENDER, clock()))
        await harness.hold_back(box.save(box.distinguished("drafts"), "IPM.Note", "old", clock()))
        harness.failures["SyncFolderItems"] = [Failure(code="ErrorAccessDenied")]
        harness.gap(None, "start")
        await harness.settle()
        assert harness.requests["SyncFolderItems"] == 2
        assert len(harness.logged("catchup.folder_skipped")) == 1
        assert harness.logged("catchup.ready")


@pytest.mark.parametrize("code", ["Http503", "Http401", "Http403", "ErrorImpersonateUserDenied"])
async def test_temporary_failure_leaves_no_folder_without_a_sync_state(
    autojump_clock: trio.testing.MockClock, code: str
) -> None:
    async with open_harness() as harness:
        for number in range(600):  # more than a page
            await harness.hold_back(harness.mailbox.deliver(f"{number}", SENDER, clock()))
        harness.failures["SyncFolderItems"] = [Failure(code=code)] * 5
        harness.gap(None, "start")
        await harness.settle(4 * 3600)
        assert not harness.failures["SyncFolderItems"]
        harness.clear()
        # The sweep finds the change that the stream held back.
        await harness.hold_back(harness.mailbox.deliver("held back", SENDER, clock()))
        await harness.settle(3 * 3600)
        reported = {kind for kind, _ in harness.recovered_changes}
        assert reported >= {"item.created", "item.new_mail"}


async def test_dropped_mailbox_gets_no_requests(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness(interval=900) as harness:
        await harness.report(harness.mailbox.deliver("mail", SENDER, clock()))
        harness.catch_up.drop(harness.mailbox.address)
        harness.clear()
        await trio.sleep(86400)
        assert not harness.requests
        assert len(harness.catch_up.delivered) == 0


async def test_mailbox_dropped_during_a_comparison_gets_no_more_requests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness(interval=900) as harness:
        harness.delay = 5.0
        harness.gap(trio.current_time())
        await harness.settle(2)
        harness.catch_up.drop(harness.mailbox.address)
        await harness.settle(600)  # until the running comparison has ended
        harness.clear()
        await trio.sleep(86400)
        assert not harness.requests
        assert harness.catch_up.lagging(trio.current_time()) == 0


# --- another process


async def restart(harness: CatchUpHarness) -> CatchUp:
    """Return the CatchUp of another process."""
    return CatchUp(routes=harness, states=harness.states, kinds=harness.kinds, now=harness.now)


async def test_another_process_continues(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        box, drafts = harness.mailbox, harness.mailbox.distinguished("drafts")
        await harness.report(box.deliver("reported", SENDER, clock()))
        (reported,) = box.latest(box.distinguished("inbox"), 1)
        journal = list(harness.events)
        await harness.hold_back(box.save(drafts, "IPM.Note", "missed", clock()))
        await harness.hold_back(box.purge(reported, clock()))
        (missed,) = box.latest(drafts, 1)
        harness.catch_up = await restart(harness)
        async with trio.open_nursery() as nursery:
            harness.catch_up.note(journal)
            harness.gap(None, "start")
            nursery.start_soon(harness.catch_up.run)
            await harness.settle()
            nursery.cancel_scope.cancel()
        items = [(type_, id_) for type_, id_ in harness.recovered_changes if type_.startswith("item.")]
        assert sorted(items) == sorted([("item.created", missed.id), ("item.deleted", reported.id)])
        assert harness.lost() == []
        kind, reason = harness.listener_events[0]
        assert (kind, (reason or "")[:11]) == ("gap", "start: from")
        # It was compared a minute ago.
        assert "08:06:4" in (reason or "")


class Crashing(MemoryStates):
    """A store whose process ends after a number of writes."""

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
async def test_crash_at_any_write_loses_no_event(writes: int, autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        box, inbox = harness.mailbox, harness.mailbox.distinguished("inbox")
        (first,) = box.latest(inbox, 1)
        since = trio.current_time()
        await harness.hold_back(box.create_folder("new", inbox, clock()))
        await harness.hold_back(box.deliver("missed", SENDER, clock()))
        await harness.hold_back(box.move(first, box.own_folders()[0], clock()))
        crashing = Crashing(harness.publish, writes)
        crashing._stored = harness.states._stored
        harness.catch_up.states = crashing
        harness.gap(since)
        await harness.settle()
        harness.catch_up = await restart(harness)
        harness.gap(None, "start")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.catch_up.run)
            await harness.settle()
            nursery.cancel_scope.cancel()
        assert harness.lost() == []


async def test_journal_error_does_not_stop_catch_up(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:

        class Full(MemoryStates):
            failing = 2

            async def save(
                self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
            ) -> None:
                if self.failing:
                    self.failing -= 1
                    raise OSError("no space left on device")
                await super().save(mailbox, events, changes)

        full = Full(harness.publish)
        full._stored = harness.states._stored
        harness.catch_up.states = full
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.deliver("missed", SENDER, clock()))
        harness.gap(since)
        await harness.settle(300)
        assert harness.lost() == []
        assert len(harness.logged("catchup.crashed")) == 2
        harness.log.clear()


async def test_events_without_ids_cause_paced_comparisons(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness(interval=100_000.0) as harness:
        mailbox = next(iter(harness.exchange.directory))
        mailbox.deliver("second", SENDER, clock())  # the event has no id
        harness.catch_up.gap(mailbox.address, trio.current_time(), "EventWithoutId")
        await trio.sleep(20)
        assert "exchange.item.created" in [event.type for _, event in harness.published]
        before = harness.requests["FindFolder"]
        for _ in range(600):
            harness.catch_up.gap(mailbox.address, trio.current_time(), "EventWithoutId")
            await trio.sleep(1)
        assert 8 <= harness.requests["FindFolder"] - before <= 11
        await trio.sleep(61)
        harness.clear()
        mailbox.deliver("third", SENDER, clock())
        harness.catch_up.gap(mailbox.address, trio.current_time(), "EventWithoutId")
        harness.catch_up.gap(mailbox.address, trio.current_time(), "lost")  # another reason does not wait
        await trio.sleep(10)
        assert "exchange.item.created" in [event.type for _, event in harness.published]
