"""Regression tests: each cause of a lost event that was found in catch-up, on a virtual clock."""

from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from listener.catchup.workers import Work
from listener.simulator.mailstore import Item
from listener.simulator.traffic import Traffic
from tests.virtual.harness import CatchUpHarness, open_harness, ready_harness
from tests.virtual.random_history import (
    existing_ids,
    reported_after_deletion,
    reported_as_new,
    run_random_history,
)
from tests.virtual.wire import clock

SENDER = "ben@example.org"


async def mail(harness: CatchUpHarness, *, streamed: bool = True) -> Item:
    """Deliver a mail, which the stream reports or not."""
    deliver = harness.report if streamed else harness.hold_back
    await deliver(harness.mailbox.deliver("mail", SENDER, clock()))
    return harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)[0]


async def test_folder_that_changed_before_the_first_comparison(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_harness(builders=0) as harness:
        box, since = harness.mailbox, trio.current_time()
        inbox = box.distinguished("inbox")
        await harness.hold_back(box.create_folder("new", inbox, clock()))
        await harness.report(box.save(box.distinguished("drafts"), "IPM.Note", "draft", clock()))
        harness.gap(since)
        await harness.settle()
        reported = {id_ for type_, id_ in harness.recovered_changes if type_ == "folder.modified"}
        assert {inbox.id, box.own_folders()[0].id} <= reported
        assert box.distinguished("drafts").id not in reported
        assert harness.lost() == []


@pytest.mark.parametrize("small", [True, False])
async def test_item_deleted_from_a_folder_without_a_sync_state(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream or a comparison reported it before, so only the history knows of it."""
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with open_harness(builders=0) as harness:
        old = await mail(harness)  # the folder is not empty at its first comparison
        await trio.sleep(400)
        harness.gap(None, "start")
        await harness.settle()
        streamed, found = await mail(harness), await mail(harness, streamed=False)
        harness.gap(trio.current_time() - 5)
        await harness.settle(600)
        assert ("item.created", found.id) in harness.recovered_changes
        harness.clear()
        since = trio.current_time()
        for item in (old, streamed, found):
            await harness.hold_back(harness.mailbox.purge(item, clock()))
        harness.gap(since)
        await harness.settle()
        gone = [id_ or "" for type_, id_ in harness.recovered_changes if type_ == "item.deleted"]
        assert sorted(gone) == sorted([old.id, streamed.id, found.id])


@pytest.mark.parametrize("quietly", [False, True])
async def test_item_deleted_while_the_server_loses_the_sync_state(
    quietly: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with ready_harness() as harness:
        staying, going = await mail(harness), await mail(harness)
        harness.catch_up.sweep()
        await harness.settle()
        since = trio.current_time()
        harness.mailbox.lose_sync_states(quietly=quietly)
        await harness.hold_back(harness.mailbox.purge(going, clock()))
        coming = await mail(harness, streamed=False)
        harness.gap(since)
        await harness.settle()
        assert ("item.deleted", going.id) in harness.recovered_changes
        assert ("item.created", coming.id) in harness.recovered_changes
        assert ("item.deleted", staying.id) not in harness.recovered_changes
        assert harness.lost() == []


@pytest.mark.parametrize("is_incomplete", [False, True])
async def test_short_lived_item_while_the_history_is_incomplete(
    is_incomplete: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """No SyncState shows the item: it exists neither before nor after the gap."""
    async with ready_harness() as harness:
        mailbox = harness.mailbox.address
        item = await mail(harness)
        if is_incomplete:  # as after a start that could not load all events
            harness.catch_up.delivered.of(mailbox).clear()
            harness.catch_up.delivered.of(mailbox).incomplete = False
            harness.catch_up.delivered.mark_incomplete([mailbox])
        else:
            harness.catch_up.delivered.each = 30
            for _ in range(20):
                await mail(harness)
            assert harness.catch_up.delivered.of(mailbox).incomplete
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.purge(item, clock()))
        harness.gap(since)
        await harness.settle()
        assert ("item.deleted", item.id) in harness.recovered_changes
        assert harness.lost() == []
        assert ("gap", "deletions cannot be detected in Inbox") in harness.listener_events


@pytest.mark.parametrize("quietly", [False, True])
async def test_items_deleted_from_a_large_folder_while_the_server_loses_the_sync_state(
    quietly: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 100)
    async with ready_harness() as harness:
        items = [await mail(harness) for _ in range(250)]
        await trio.sleep(900)
        harness.catch_up.sweep()
        await harness.settle()
        since = trio.current_time()
        harness.mailbox.lose_sync_states(quietly=quietly)
        for item in items[:30]:
            await harness.hold_back(harness.mailbox.purge(item, clock()))
        harness.clear()
        harness.gap(since)
        await harness.settle()
        gone = {id_ for type_, id_ in harness.recovered_changes if type_ == "item.deleted"}
        assert gone == {item.id for item in items[:30]}
        assert harness.requests["SyncFolderItems"] + harness.requests["GetItem"] < 15


async def test_many_missing_items_are_found_by_listing_the_folder(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        harness.catch_up.delivered.each = 1
        items = [await mail(harness) for _ in range(250)]
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.purge(items[7], clock()))
        harness.clear()
        harness.gap(since)
        await harness.settle()
        assert [id_ for type_, id_ in harness.recovered_changes if type_ == "item.deleted"] == [items[7].id]
        assert harness.requests["GetItem"] <= 1
        assert harness.requests["SyncFolderItems"] <= 3


async def test_events_held_back_before_the_sync_state_was_built(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_harness(builders=0, interval=100) as harness:
        await mail(harness)
        await trio.sleep(400)
        harness.gap(None, "start")
        await harness.settle(1)
        kept = await mail(harness, streamed=False)
        # The SyncState is built now and covers it.
        harness.catch_up.builders = 1
        async with trio.open_nursery() as nursery:
            workers, do = harness.catch_up._workers(), harness.catch_up._build
            nursery.start_soon(workers.serve, harness.catch_up._builds, do, Work.BUILD)
            await harness.settle(300)
            nursery.cancel_scope.cancel()
        assert ("item.created", kept.id) in harness.recovered_changes
        assert harness.lost() == []


async def test_items_of_a_deleted_folder(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        await harness.report(box.create_folder("goes", box.distinguished("inbox"), clock()))
        (folder,) = box.own_folders()
        item = await mail(harness)
        await harness.report(box.move(item, folder, clock()))
        since = trio.current_time()
        await harness.hold_back(box.edit(item, "changed", clock()))
        await harness.hold_back(box.purge_folder(folder, clock()))
        harness.gap(since)
        await harness.settle()
        assert {("item.deleted", item.id), ("folder.deleted", folder.id)} <= set(harness.recovered_changes)
        assert harness.lost() == []


async def test_folder_deleted_between_survey_and_comparison(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        since = trio.current_time()
        await harness.hold_back(box.create_folder("new", box.distinguished("inbox"), clock()))
        (folder,) = box.own_folders()
        await harness.hold_back(box.save(folder, "IPM.Note", "inside", clock()))

        def before(operation: str) -> None:
            if operation == "SyncFolderItems" and folder.id in box.folders:
                harness.lines += harness.exchange.publish(box.purge_folder(folder, clock()))

        harness.before_request = before
        harness.gap(since)
        await harness.settle()
        harness.catch_up.sweep()
        await harness.settle()
        reported = [each for each in harness.recovered_changes if each[1] == folder.id]
        assert reported == [("folder.created", folder.id), ("folder.deleted", folder.id)]


async def test_sweep_due_between_two_streams_is_run_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness(interval=100) as harness:
        kept = await mail(harness, streamed=False)
        harness.streaming = False
        await trio.sleep(200)
        assert harness.requests["FindFolder"] == 0
        harness.streaming = True
        await harness.settle(60)
        assert ("item.created", kept.id) in harness.recovered_changes


async def test_gap_counts_as_open_until_it_is_filled(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        await mail(harness, streamed=False)
        since = trio.current_time()
        harness.gap(since - 1)
        await trio.sleep(1)  # it waits for events that a stream delivers late
        assert (harness.catch_up.open_gaps, harness.catch_up.lagging(since)) == (1, 1)
        # Another gap begins meanwhile, and has a missing change of its own.
        await mail(harness, streamed=False)
        harness.gap(since)
        await trio.sleep(2)
        assert harness.catch_up.open_gaps == 1
        await harness.settle()
        assert (harness.catch_up.open_gaps, harness.catch_up.lagging(since)) == (0, 0)
        assert harness.catch_up.lagging(trio.current_time()) == 1


@pytest.mark.parametrize("seed", range(15))
async def test_no_event_is_lost_from_the_first_subscription_on(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """No first SyncStates, or only slowly; a first comparison inside a gap; SyncStates that the server loses;
    requests that fail for various reasons."""
    rng = Random(f"beginnings {seed}")
    settings: dict[str, Any] = {name: rng.choice(values) for name, values in SETTINGS.items()}
    async with open_harness(**settings) as harness:
        users = Traffic([harness.mailbox], 5.0, Random(f"users {seed}"))
        users.due(clock())
        await trio.sleep(20)
        await harness.hold_back(users.due(clock()))
        old = existing_ids(harness)
        assert len(old) > 20
        harness.clear()
        await trio.sleep(1)  # within one second, times do not show what came before the subscription
        started_at = trio.current_time()
        harness.gap(None, "start")
        await run_random_history(
            harness,
            users,
            rng,
            seconds=200,
            loss_rates=(0.0, 0.0, 0.0, 0.3),
            failures=FAILURES,
            state_loss_rate=0.02,
        )
        harness.failures.clear()
        harness.gap(started_at)
        await harness.settle(1900)
        assert harness.catch_up.open_gaps == 0
        # Only a SyncState shows that an old item was deleted.
        assert [line for line in harness.lost() if line.kind != "DeletedEvent" or line.id not in old] == []
        assert reported_after_deletion(harness) == []
        assert reported_as_new(harness, old) == []


SETTINGS = {"interval": (20, 60, 200), "builders": (0, 1), "start_spread": (0, 30, 100)}
FAILURES = {
    "FindFolder": ("ErrorInternalServerError", "ErrorServerBusy", "ErrorAccessDenied"),
    "GetItem": ("ErrorInternalServerError", "ErrorServerBusy"),
    "SyncFolderItems": ("ErrorInternalServerError", "ErrorInvalidSyncStateData"),
}


@pytest.mark.parametrize("small", [True, False])
async def test_events_of_the_second_of_the_first_comparison_are_not_repeated(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with open_harness() as harness:
        await mail(harness)
        edited = await mail(harness)
        await harness.report(harness.mailbox.edit(edited, "changed", clock()))
        later = await mail(harness)
        kept = await mail(harness, streamed=False)
        harness.gap(None, "start")
        await harness.settle(30)
        await harness.report(harness.mailbox.edit(later, "changed", clock()))
        harness.catch_up.sweep()
        await harness.settle()
        assert {id_ for _, id_ in harness.recovered_changes} <= {kept.id}
        missed = await mail(harness, streamed=False)
        harness.catch_up.sweep()
        await harness.settle()
        assert ("item.created", missed.id) in harness.recovered_changes
