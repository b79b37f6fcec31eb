"""Items from before the first subscription are not reported, or once as a backfill."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio
import trio.testing

from listener.catchup.catchup import CatchUp
from tests.catchup.test_catchup import Crashing
from tests.virtual.harness import CatchUpHarness, open_harness
from tests.virtual.random_history import existing_ids, reported_as_new
from tests.virtual.wire import EPOCH, clock

SENDER = "ben@example.org"


async def fill_mailbox(harness: CatchUpHarness, count: int = 5) -> None:
    """Deliver one mail a second, edit a draft, and create a folder with an item."""
    box, drafts = harness.mailbox, harness.mailbox.distinguished("drafts")
    for number in range(count):
        await harness.hold_back(box.deliver(f"{number}", SENDER, clock()))
        await trio.sleep(1)
    await harness.hold_back(box.save(drafts, "IPM.Note", "draft", clock()))
    await harness.hold_back(box.edit(box.latest(drafts, 1)[0], "edited", clock()))
    await harness.hold_back(box.create_folder(f"at {clock()}", box.distinguished("inbox"), clock()))
    await harness.hold_back(box.save(box.own_folders()[-1], "IPM.Note", "inside", clock()))


@asynccontextmanager
async def another_process(harness: CatchUpHarness, **settings: object) -> AsyncIterator[None]:
    """Run another CatchUp with the stored snapshot and the delivered events."""
    events = list(harness.events)
    harness.catch_up = CatchUp(
        routes=harness,
        states=harness.states,
        kinds=harness.kinds,
        now=harness.now,
        **settings,  # type: ignore[arg-type]
    )
    harness.catch_up.note(events)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.catch_up.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("clock_lag", [-600.0, 0.0, 600.0])
@pytest.mark.parametrize("compared", [False, True])
async def test_restart_right_after_the_first_start(
    compared: bool, clock_lag: float, autojump_clock: trio.testing.MockClock
) -> None:
    """With and without an earlier comparison, and with clocks that differ."""
    async with open_harness(builders=0) as harness:
        harness.clock_lag = clock_lag
        await fill_mailbox(harness)
        old = existing_ids(harness)
        harness.clear()
        address = harness.mailbox.address
        harness.catch_up.subscribed(address, new=True)
        await trio.sleep(1)
        if compared:
            harness.gap(None, "start")
        await harness.report(harness.mailbox.deliver("streamed", SENDER, clock()))
        await trio.sleep(4)
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.deliver("missed", SENDER, clock()))
        (missed,) = harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)
        async with another_process(harness):
            harness.catch_up.subscribed(address, new=False)
            harness.gap(since, "start")
            await harness.settle()
        assert reported_as_new(harness, old) == []
        assert {id_ for type_, id_ in harness.recovered_changes} == {
            missed.id,
            harness.mailbox.distinguished("inbox").id,
        }
        assert ("item.created", missed.id) in harness.recovered_changes


@pytest.mark.parametrize("earlier", [0.0, 30.0])
async def test_crash_within_the_second_of_the_first_subscribe(
    earlier: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Mail that arrived then is found, also if the gap is said to begin long before the first subscription."""
    async with open_harness(builders=0) as harness:
        address = harness.mailbox.address
        await fill_mailbox(harness)
        old = existing_ids(harness)
        harness.clear()
        await trio.sleep(1.2)  # older items are of another second
        since = trio.current_time() - earlier
        harness.catch_up.subscribed(address, new=True)
        await trio.sleep(0.2)
        await harness.hold_back(harness.mailbox.deliver("on its way", SENDER, clock()))
        (lost,) = harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)
        async with another_process(harness):
            harness.catch_up.subscribed(address, new=False)
            harness.gap(since, "start")
            await harness.settle()
        assert ("item.created", lost.id) in harness.recovered_changes
        assert reported_as_new(harness, old) == []


@pytest.mark.parametrize("writes", range(4))
async def test_crash_during_the_first_comparison(writes: int, autojump_clock: trio.testing.MockClock) -> None:
    async with open_harness() as harness:
        await fill_mailbox(harness)
        old = existing_ids(harness)
        harness.clear()
        crashing = Crashing(harness.publish, writes)
        crashing._stored = harness.states._stored
        harness.catch_up.states = crashing
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        await trio.sleep(1)
        harness.gap(None, "start")
        await trio.sleep(30)
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.deliver("missed", SENDER, clock()))
        async with another_process(harness):
            harness.gap(since, "start")
            await harness.settle()
        assert reported_as_new(harness, old) == []
        assert harness.lost() == []


async def test_mailbox_that_is_added_again(autojump_clock: trio.testing.MockClock) -> None:
    """Catch-up continues from the removal, not from the first subscription."""
    async with open_harness() as harness:
        await fill_mailbox(harness)
        old = existing_ids(harness)
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        await trio.sleep(1)
        harness.gap(None, "start")
        await harness.settle()
        harness.catch_up.drop(harness.mailbox.address)
        harness.clear()
        await fill_mailbox(harness)
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        harness.gap(None, "start")
        await harness.settle()
        assert reported_as_new(harness, old) == []
        assert harness.lost() == []


async def test_old_items_that_change_are_reported_as_modified(autojump_clock: trio.testing.MockClock) -> None:
    async with open_harness(builders=0) as harness:
        await fill_mailbox(harness)
        old = existing_ids(harness)
        item = harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)[0]
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        await trio.sleep(1)
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.mark(item, clock(), read=True))
        await harness.hold_back(
            harness.mailbox.rename_folder(harness.mailbox.own_folders()[0], "renamed", clock())
        )
        harness.gap(None, "start")
        await harness.settle()
        harness.gap(since)
        await harness.settle()
        assert reported_as_new(harness, old) == []
        assert ("item.modified", item.id) in harness.recovered_changes
        assert ("folder.modified", harness.mailbox.own_folders()[0].id) in harness.recovered_changes
        assert len(harness.recovered_changes) == 3  # and the inbox


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("initial", [100.0, datetime.fromtimestamp(EPOCH + 1000, UTC)])
async def test_backfill_is_reported_once(
    initial: float | datetime,
    small: bool,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with open_harness(initial=initial) as harness:
        await fill_mailbox(harness)
        old = existing_ids(harness)
        await trio.sleep(1000)
        before = existing_ids(harness)
        await fill_mailbox(harness)
        new = existing_ids(harness) - before
        edited = harness.mailbox.latest(harness.mailbox.distinguished("drafts"), 2)[1]
        await harness.hold_back(harness.mailbox.edit(edited, "again", clock()))
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        await trio.sleep(1)
        harness.gap(None, "start")
        await harness.settle()
        items = new - set(harness.mailbox.folders)
        inbox = harness.mailbox.distinguished("inbox")
        mail = {id_ for id_ in inbox.items if id_ in items}
        expected = {("item.created", id_) for id_ in items} | {("item.new_mail", id_) for id_ in mail}
        assert set(harness.recovered_changes) == expected
        assert reported_as_new(harness, old) == []
        for again in range(2):
            await trio.sleep(400 * again)
            async with another_process(harness, initial=initial):
                harness.gap(trio.current_time() - 30, "start")
                await harness.settle()
        assert len(harness.recovered_changes) == len(expected)


async def test_folders_that_enter_the_scope_later_are_not_new(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_harness(folders=("inbox",)) as harness:
        await fill_mailbox(harness)
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        await trio.sleep(1)
        harness.gap(None, "start")
        await harness.settle()
        old = existing_ids(harness)
        harness.clear()
        for folders in (None, ("inbox", "drafts"), ("calendar",), None):
            harness.folders = folders
            since = trio.current_time()
            harness.gap(since, "lost")
            await harness.settle(700)
            assert harness.recovered_changes == []
        since = trio.current_time()
        await harness.hold_back(
            harness.mailbox.save(harness.mailbox.distinguished("drafts"), "IPM.Note", "new", clock())
        )
        harness.gap(since)
        await harness.settle()
        assert "item.created" in {type_ for type_, _ in harness.recovered_changes}
        assert reported_as_new(harness, old) == []
        assert harness.lost() == []
