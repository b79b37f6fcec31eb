"""A mailbox is replaced under its address: all its items and folders have other ids."""

from uuid import UUID

import pytest
import trio
import trio.testing

from listener.simulator.mailstore import Item
from tests.virtual.harness import CatchUpHarness, ready_harness
from tests.virtual.test_first_subscription import another_process, fill_mailbox
from tests.virtual.wire import clock

SENDER = "ben@example.org"
STORE = UUID("0a0b0c0d-1111-4222-8333-444455556666")


async def prepare(harness: CatchUpHarness) -> None:
    await fill_mailbox(harness, 8)
    await trio.sleep(700)
    harness.catch_up.sweep()
    await harness.settle()
    harness.clear()
    harness.renewed.clear()


async def mail(harness: CatchUpHarness) -> Item:
    await harness.hold_back(harness.mailbox.deliver("new", SENDER, clock()))
    return harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)[0]


def resets(harness: CatchUpHarness) -> int:
    return [kind for kind, _ in harness.listener_events].count("reset")


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("folders", [None, ("inbox", "drafts")])
async def test_only_new_items_of_the_new_mailbox_are_reported(
    folders: tuple[str, ...] | None,
    small: bool,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 4)
    async with ready_harness(folders=folders) as harness:
        await prepare(harness)
        since = trio.current_time()
        await trio.sleep(100)
        harness.mailbox.replace(STORE, clock())
        await trio.sleep(30)
        new = await mail(harness)
        harness.gap(since)
        await harness.settle()
        assert sorted(harness.recovered_changes) == [("item.created", new.id), ("item.new_mail", new.id)]
        assert resets(harness) == 1
        (line,) = harness.logged("catchup.reset")
        assert line["mailbox"] == harness.mailbox.address
        # From now on it behaves like any other mailbox, also in the next process.
        for again in range(3):
            harness.clear()
            since = trio.current_time()
            later = await mail(harness)
            await harness.hold_back(harness.mailbox.purge(new, clock()))
            if again == 2:
                async with another_process(harness):
                    harness.gap(since, "start")
                    await harness.settle(700)
            else:
                harness.gap(since)
                await harness.settle(700)
            inbox = harness.mailbox.distinguished("inbox").id
            assert {each for each in harness.recovered_changes if each[1] != inbox} == {
                ("item.created", later.id),
                ("item.new_mail", later.id),
                ("item.deleted", new.id),
            }
            assert resets(harness) == 0
            new = later


async def test_sweep_finds_the_replacement_and_renews_the_subscription(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        await prepare(harness)
        harness.mailbox.replace(STORE, clock())
        new = await mail(harness)
        harness.catch_up.sweep()
        await harness.settle()
        assert sorted(harness.recovered_changes) == [("item.created", new.id), ("item.new_mail", new.id)]
        assert resets(harness) == 1
        assert harness.renewed == [harness.mailbox.address]
        harness.clear()
        harness.catch_up.sweep()
        await harness.settle()
        assert (harness.recovered_changes, resets(harness)) == ([], 0)


async def test_streamed_events_of_the_new_mailbox_are_not_reported_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        await prepare(harness)
        since = trio.current_time()
        harness.mailbox.replace(STORE, clock())
        await trio.sleep(5)
        await harness.report(harness.mailbox.deliver("streamed", SENDER, clock()))
        harness.gap(since)
        await harness.settle()
        assert (harness.recovered_changes, resets(harness)) == ([], 1)


async def test_server_that_omits_the_top_folder_has_not_replaced_the_mailbox(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready_harness() as harness:
        await prepare(harness)
        box = harness.mailbox
        top = box.distinguished("msgfolderroot")
        original = box.below
        monkeypatch.setattr(box, "below", lambda folder: [f for f in original(folder) if f is not top])
        since = trio.current_time()
        new = await mail(harness)
        harness.gap(since)
        await harness.settle()
        assert ("item.created", new.id) in harness.recovered_changes
        assert resets(harness) == 0
        assert harness.lost() == []
