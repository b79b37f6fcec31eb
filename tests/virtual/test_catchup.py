"""Catch-up of simulated mailboxes, on a virtual clock."""

from collections import Counter
from random import Random

import pytest
import trio
import trio.testing

from listener.ews.codes import Failure
from listener.simulator.traffic import Traffic
from tests.virtual.harness import open_harness, ready_harness, to_event
from tests.virtual.random_history import (
    existing_ids,
    reported_after_deletion,
    reported_as_new,
    run_random_history,
)
from tests.virtual.wire import clock

SENDER = "ben@example.org"


async def test_first_start_reports_nothing_and_builds_sync_states(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_harness() as harness:
        box = harness.mailbox
        await harness.hold_back(box.deliver("old", SENDER, clock()))
        await harness.hold_back(box.save(box.distinguished("drafts"), "IPM.Note", "old", clock()))
        harness.gap(None, "start")
        await harness.settle()
        assert harness.published == []
        assert harness.requests["FindFolder"] == 1
        # One for each folder that has items. An empty folder needs no SyncState.
        assert harness.requests["SyncFolderItems"] == 2
        assert harness.logged("catchup.ready")


async def test_changes_in_a_gap_are_reported(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        box, inbox = harness.mailbox, harness.mailbox.distinguished("inbox")
        drafts = box.distinguished("drafts")
        await harness.report(box.save(drafts, "IPM.Note", "a", clock()))
        await harness.report(box.save(drafts, "IPM.Note", "b", clock()))
        draft, moved = box.latest(drafts, 2)
        await trio.sleep(10)
        since = trio.current_time()
        gone = moved.id
        await harness.hold_back(box.deliver("new", SENDER, clock()))
        await harness.hold_back(box.edit(draft, "changed", clock()))
        await harness.hold_back(box.move(moved, box.distinguished("deleteditems"), clock()))
        (mail,) = box.latest(inbox, 1)
        harness.gap(since)
        await harness.settle()
        items = [(type_, id_) for type_, id_ in harness.recovered_changes if type_.startswith("item.")]
        assert sorted(items) == sorted(
            [
                ("item.created", mail.id),
                ("item.new_mail", mail.id),
                ("item.modified", draft.id),
                ("item.deleted", gone),
                ("item.created", moved.id),
            ]
        )
        folders = {id_ for type_, id_ in harness.recovered_changes if type_ == "folder.modified"}
        assert folders == {inbox.id, drafts.id, box.distinguished("deleteditems").id}
        assert [kind for kind, _ in harness.listener_events] == ["gap", "recovered"]
        assert harness.lost() == []
        # One request for the folders, and one for each that changed. The SyncState of the inbox is more recent than
        # its first comparison, so the inbox is also read as a whole.
        assert harness.requests["FindFolder"] == 1
        assert harness.requests["SyncFolderItems"] == 4


async def test_reported_changes_are_not_reported_again(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        users = Traffic([box], 5.0, Random(7))
        for _ in range(200):
            await harness.report(users.due(clock()))
            await trio.sleep(1)
        since = trio.current_time()
        harness.gap(since)
        await harness.settle()
        assert harness.recovered == []
        assert len(harness.events) == len(harness.lines)
        harness.catch_up.sweep()
        await harness.settle()
        assert harness.recovered == []
        assert harness.renewed == []


async def test_events_that_a_stream_delivers_late_are_not_reported_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        events = box.deliver("late", SENDER, clock())
        harness.lines += harness.exchange.publish(events)
        harness.catch_up.sweep()
        await trio.sleep(5)
        harness.catch_up.note([to_event(event) for event in events])
        await harness.settle()
        assert harness.recovered == []
        assert harness.renewed == []


async def test_stalled_stream_is_found_within_an_interval(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness(interval=900) as harness:
        await trio.sleep(2000)
        await harness.report(harness.mailbox.deliver("streamed", SENDER, clock()))
        await trio.sleep(1000)
        await harness.hold_back(harness.mailbox.deliver("held back", SENDER, clock()))
        await trio.sleep(950)
        assert harness.renewed == [harness.mailbox.address]
        assert harness.lost() == []
        assert harness.catch_up.missed == 1
        assert [kind for kind, _ in harness.listener_events] == ["gap", "recovered"]


async def test_sweep_interval_of_an_idle_mailbox_grows(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness(interval=900, idle_interval=7200) as harness:
        await trio.sleep(900 + 1800 + 3600 + 7200)
        assert harness.requests["FindFolder"] == 4
        harness.requests.clear()
        await trio.sleep(2 * 86400)
        assert harness.requests["FindFolder"] == 24
        # An event shortens the interval again.
        await harness.report(harness.mailbox.deliver("again", SENDER, clock()))
        harness.requests.clear()
        await trio.sleep(1000)
        assert harness.requests["FindFolder"] == 1


@pytest.mark.parametrize("small", [True, False])
async def test_folder_without_a_sync_state_is_read_as_a_whole_or_searched_by_time(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with open_harness(builders=0) as harness:
        box, drafts = harness.mailbox, harness.mailbox.distinguished("drafts")
        await harness.report(box.save(drafts, "IPM.Note", "a", clock()))
        await harness.report(box.save(drafts, "IPM.Note", "b", clock()))
        await trio.sleep(10)
        await harness.report(box.mark(box.latest(drafts, 1)[0], clock(), read=False))
        harness.gap(None, "start")
        await harness.settle(600)
        harness.clear()
        since = trio.current_time()
        gone, kept = box.latest(drafts, 2)
        await harness.hold_back(box.purge(gone, clock()))
        await harness.hold_back(box.edit(kept, "changed", clock()))
        await harness.hold_back(box.deliver("new", SENDER, clock()))
        (mail,) = box.latest(box.distinguished("inbox"), 1)
        await trio.sleep(10)
        harness.gap(since)
        await harness.settle()
        items = [(type_, id_) for type_, id_ in harness.recovered_changes if type_.startswith("item.")]
        assert sorted(items) == sorted(
            [
                ("item.created", mail.id),
                ("item.new_mail", mail.id),
                ("item.modified", kept.id),
                ("item.deleted", gone.id),
            ]
        )
        # The inbox was empty, so all its items are new.
        assert harness.requests["SyncFolderItems"] == 1 + small
        assert harness.requests["FindItem"] == (not small)
        # It reports in which folders deletions cannot be detected.
        assert [kind for kind, _ in harness.listener_events] == ["gap", "gap", "recovered"]
        assert "Drafts" in (harness.listener_events[1][1] or "")
        assert "Inbox" not in (harness.listener_events[1][1] or "")


async def test_gap_before_the_first_comparison(autojump_clock: trio.testing.MockClock) -> None:
    """The stream was open for a moment, was lost, and was reopened before the first comparison."""
    async with open_harness(builders=0) as harness:
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.deliver("missed", SENDER, clock()))
        harness.gap(since)
        await harness.settle()
        (mail,) = harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)
        assert ("item.created", mail.id) in harness.recovered_changes


async def test_sync_state_from_inside_the_gap_is_not_used_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_harness() as harness:
        harness.catch_up.subscribed(harness.mailbox.address, new=True)
        await trio.sleep(1)
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.deliver("missed", SENDER, clock()))
        await trio.sleep(5)
        harness.gap(None, "start")
        await harness.settle()
        assert harness.recovered == []
        harness.gap(since)
        await harness.settle()
        (mail,) = harness.mailbox.latest(harness.mailbox.distinguished("inbox"), 1)
        assert ("item.created", mail.id) in harness.recovered_changes


@pytest.mark.parametrize("quietly", [False, True])
async def test_sync_states_that_the_server_lost(
    quietly: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with ready_harness() as harness:
        box, inbox = harness.mailbox, harness.mailbox.distinguished("inbox")
        for number in range(30):
            await harness.report(box.deliver(f"{number}", SENDER, clock()))
            await trio.sleep(1)
        await harness.report(box.mark(box.latest(inbox, 1)[0], clock(), read=True))
        await trio.sleep(600)
        harness.catch_up.sweep()
        await harness.settle()
        assert harness.recovered == []
        harness.clear()
        since = trio.current_time()
        await harness.hold_back(box.deliver("missed", SENDER, clock()))
        box.lose_sync_states(quietly=quietly)
        harness.gap(since)
        await harness.settle()
        mail, last = box.latest(inbox, 2)
        items = [(type_, id_) for type_, id_ in harness.recovered_changes if type_.startswith("item.")]
        # Items of the last known second are reported again.
        again = {("item.modified", last.id)}
        assert set(items) - again == {("item.created", mail.id), ("item.new_mail", mail.id)}
        # The SyncStates are built again and serve the next gap.
        harness.clear()
        since = trio.current_time()
        await harness.hold_back(box.purge(mail, clock()))
        harness.gap(since)
        await harness.settle()
        assert ("item.deleted", mail.id) in harness.recovered_changes


async def test_folders_created_deleted_and_moved_in_a_gap(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        inbox, top = box.distinguished("inbox"), box.distinguished("msgfolderroot")
        for name in ("moves", "goes", "renamed"):
            await harness.report(box.create_folder(name, inbox, clock()))
        moves, goes, renamed = box.own_folders()
        harness.catch_up.sweep()
        await harness.settle()
        assert harness.recovered == []
        since = trio.current_time()
        await harness.hold_back(box.create_folder("comes", inbox, clock()))
        comes = box.own_folders()[-1]
        await harness.hold_back(box.save(comes, "IPM.Note", "inside", clock()))
        await harness.hold_back(box.move_folder(moves, top, clock()))
        await harness.hold_back(box.rename_folder(renamed, "other", clock()))
        await harness.hold_back(box.purge_folder(goes, clock()))
        harness.gap(since)
        await harness.settle()
        assert [each for each in harness.recovered_changes if each[1] not in (inbox.id, top.id)] == [
            ("folder.created", comes.id),
            ("folder.moved", moves.id),
            ("item.created", next(iter(comes.items))),
            ("folder.modified", renamed.id),
            ("folder.deleted", goes.id),
        ]
        assert harness.lost() == []


async def test_many_changes_are_read_in_pages(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        since = trio.current_time()
        for number in range(1100):
            await harness.hold_back(box.deliver(f"{number}", SENDER, clock()))
        harness.gap(since)
        await harness.settle()
        assert harness.requests["SyncFolderItems"] == 3
        assert Counter(type_ for type_, _ in harness.recovered_changes)["item.created"] == 1100


async def test_failed_requests_are_retried_and_nothing_is_reported_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        await harness.hold_back(box.deliver("missed", SENDER, clock()))
        since = trio.current_time()
        harness.failures["FindFolder"] = [Failure(code="ErrorInternalServerError")] * 2
        harness.failures["SyncFolderItems"] = [Failure(code="ErrorServerBusy", wait=30.0)]
        harness.gap(since)
        await harness.settle(300)
        assert [line["failures"] for line in harness.logged("catchup.failed")] == [1, 2, 3]
        assert [kind for kind, _ in harness.listener_events] == ["gap", "recovered"]
        assert Counter(type_ for type_, _ in harness.recovered_changes)["item.created"] == 1
        assert harness.catch_up.open_gaps == 0


async def test_unreadable_mailbox_is_retried_with_growing_delays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        since = trio.current_time()
        await harness.hold_back(box.deliver("missed", SENDER, clock()))
        harness.failures["FindFolder"] = [Failure(code="ErrorAccessDenied")] * 10
        harness.gap(since)
        await harness.settle(600)
        assert harness.requests["FindFolder"] == 6  # at once, and after 15, 45, … 465 s
        assert harness.catch_up.open_gaps == 1
        harness.failures.clear()
        await harness.settle(600)
        assert harness.catch_up.open_gaps == 0
        assert ("item.created", box.latest(box.distinguished("inbox"), 1)[0].id) in harness.recovered_changes


async def test_unreadable_folder_does_not_block_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready_harness() as harness:
        box = harness.mailbox
        since = trio.current_time()
        await harness.hold_back(box.deliver("missed", SENDER, clock()))
        await harness.hold_back(box.save(box.distinguished("drafts"), "IPM.Note", "missed", clock()))
        harness.failures["SyncFolderItems"] = [Failure(code="ErrorAccessDenied")]
        harness.gap(since)
        await harness.settle()
        assert [type_ for type_, _ in harness.recovered_changes if type_.startswith("item.")] == [
            "item.created"
        ]
        assert "Inbox (ErrorAccessDenied)" in (harness.listener_events[1][1] or "")


async def test_gap_waits_while_there_is_no_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        harness.streaming = False
        await harness.hold_back(harness.mailbox.deliver("missed", SENDER, clock()))
        harness.gap(trio.current_time())
        await harness.settle()
        assert harness.requests == Counter()
        harness.streaming = True
        harness.gap(trio.current_time())
        await harness.settle(5)
        assert Counter(type_ for type_, _ in harness.recovered_changes)["item.created"] == 1


async def test_subscription_to_one_folder_and_to_new_mail(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness(folders=("inbox",), kinds=frozenset(("new_mail",))) as harness:
        box = harness.mailbox
        drafts = box.distinguished("drafts")
        await harness.hold_back(box.save(drafts, "IPM.Note", "draft", clock()))
        await harness.hold_back(box.move(box.latest(drafts, 1)[0], box.distinguished("inbox"), clock()))
        harness.catch_up.sweep()
        await harness.settle()
        since = trio.current_time()
        await trio.sleep(400)
        harness.clear()
        await harness.hold_back(box.deliver("missed", SENDER, clock()))
        (mail,) = box.latest(box.distinguished("inbox"), 1)
        harness.gap(since)
        await harness.settle()
        assert harness.recovered_changes == [("item.new_mail", mail.id)]


async def test_mode_signal_only_reports_the_gap(autojump_clock: trio.testing.MockClock) -> None:
    async with open_harness(mode="signal") as harness:
        since = trio.current_time()
        await harness.hold_back(harness.mailbox.deliver("missed", SENDER, clock()))
        await trio.sleep(30)
        harness.gap(since, "missed")
        harness.gap(since, "regrouped")
        await harness.settle()
        assert harness.listener_events == [("gap", "missed, regrouped: from 2027-01-15T08:00:00Z on")]
        assert harness.requests == Counter()


async def test_mode_off_does_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_harness(mode="off") as harness:
        await harness.report(harness.mailbox.deliver("mail", SENDER, clock()))
        harness.gap(0.0)
        await harness.settle(3600)
        assert harness.listener_events == []
        assert harness.requests == Counter()


async def test_more_events_than_the_history_holds(autojump_clock: trio.testing.MockClock) -> None:
    """Events are reported again then, and do not count as missed."""
    async with ready_harness() as harness:
        harness.catch_up.delivered.each = 100
        for _ in range(40):
            await harness.report(harness.mailbox.deliver("mail", SENDER, clock()))
        harness.catch_up.sweep()
        await harness.settle()
        assert len(harness.recovered) > 10
        assert harness.renewed == []
        harness.clear()
        harness.catch_up.sweep()
        await harness.settle()
        assert harness.recovered == []


async def test_much_traffic_causes_an_early_sweep(autojump_clock: trio.testing.MockClock) -> None:
    async with ready_harness() as harness:
        harness.catch_up.delivered.each = 400
        for _ in range(200):
            await harness.report(harness.mailbox.deliver("mail", SENDER, clock()))
            await trio.sleep(1)
        assert harness.requests["FindFolder"] >= 2
        assert harness.recovered == []


@pytest.mark.parametrize("seed", range(40))
async def test_random_history_loses_no_event(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """User changes, a stream that loses events and has gaps, comparisons at any moment, failed requests."""
    rng = Random(f"histories {seed}")
    async with ready_harness(interval=200) as harness:
        old = existing_ids(harness)
        users = Traffic([harness.mailbox], 5.0, Random(f"users {seed}"))
        await run_random_history(
            harness, users, rng, seconds=300, loss_rates=(0.0, 0.0, 0.3), failures=FAILURES
        )
        harness.failures.clear()
        harness.gap(0.0)
        await harness.settle(900)
        assert harness.lost() == []
        assert reported_after_deletion(harness) == []
        assert reported_as_new(harness, old) == []


FAILURES = dict.fromkeys(("FindFolder", "SyncFolderItems", "FindItem"), ("ErrorInternalServerError",))
