"""Catching up, on a virtual clock, with mailboxes of the simulator."""

from collections import Counter
from random import Random

import pytest
import trio
import trio.testing

from listener.ews.codes import Failure
from listener.simulator.traffic import Traffic
from tests.virtual.history import happens, phantoms, things, too_old
from tests.virtual.office import office, ready, told
from tests.virtual.wire import clock

SENDER = "ben@example.org"


async def test_a_start_from_nothing_tells_nothing_and_builds_states(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with office() as one:
        box = one.mailbox
        await one.keep(box.deliver("old", SENDER, clock()))
        await one.keep(box.save(box.distinguished("drafts"), "IPM.Note", "old", clock()))
        one.gap(None, "start")
        await one.settle()
        assert one.handed == []
        assert one.asked["FindFolder"] == 1
        # One for each folder with something in it: of an empty one nothing is all that there is to know.
        assert one.asked["SyncFolderItems"] == 2
        assert one.logged("catchup.ready")


async def test_what_came_in_a_gap_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        box, inbox = one.mailbox, one.mailbox.distinguished("inbox")
        drafts = box.distinguished("drafts")
        await one.happen(box.save(drafts, "IPM.Note", "a", clock()))
        await one.happen(box.save(drafts, "IPM.Note", "b", clock()))
        draft, moved = box.latest(drafts, 2)
        await trio.sleep(10)
        since = trio.current_time()
        gone = moved.id
        await one.keep(box.deliver("new", SENDER, clock()))
        await one.keep(box.edit(draft, "changed", clock()))
        await one.keep(box.move(moved, box.distinguished("deleteditems"), clock()))
        (mail,) = box.latest(inbox, 1)
        one.gap(since)
        await one.settle()
        items = [(type_, id_) for type_, id_ in one.told if type_.startswith("item.")]
        assert sorted(items) == sorted(
            [
                ("item.created", mail.id),
                ("item.new_mail", mail.id),
                ("item.modified", draft.id),
                ("item.deleted", gone),
                ("item.created", moved.id),
            ]
        )
        folders = {id_ for type_, id_ in one.told if type_ == "folder.modified"}
        assert folders == {inbox.id, drafts.id, box.distinguished("deleteditems").id}
        assert [kind for kind, _ in one.lifecycle] == ["gap", "recovered"]
        assert one.lost() == []
        # One look at the folders, and one at each that changed; but the state of the inbox is younger than the first
        # look at it, so that it is told as a whole too.
        assert one.asked["FindFolder"] == 1
        assert one.asked["SyncFolderItems"] == 4


async def test_what_was_told_is_not_told_again(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        box = one.mailbox
        users = Traffic([box], 5.0, Random(7))
        for _ in range(200):
            await one.happen(users.due(clock()))
            await trio.sleep(1)
        since = trio.current_time()
        one.gap(since)
        await one.settle()
        assert one.recovered == []
        assert len(one.events) == len(one.lines)
        one.catch_up.sweep()
        await one.settle()
        assert one.recovered == []
        assert one.silent == []


async def test_a_stream_may_be_a_moment_late(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        box = one.mailbox
        events = box.deliver("late", SENDER, clock())
        one.lines += one.exchange.publish(events)
        one.catch_up.sweep()
        await trio.sleep(5)
        one.catch_up.note([told(event) for event in events])
        await one.settle()
        assert one.recovered == []
        assert one.silent == []


async def test_a_silent_stream_is_found_within_an_interval(autojump_clock: trio.testing.MockClock) -> None:
    async with ready(interval=900) as one:
        await trio.sleep(2000)
        await one.happen(one.mailbox.deliver("heard", SENDER, clock()))
        await trio.sleep(1000)
        await one.keep(one.mailbox.deliver("kept", SENDER, clock()))
        await trio.sleep(950)
        assert one.silent == [one.mailbox.address]
        assert one.lost() == []
        assert one.catch_up.missed == 1
        assert [kind for kind, _ in one.lifecycle] == ["gap", "recovered"]


async def test_an_idle_mailbox_is_swept_ever_more_seldom(autojump_clock: trio.testing.MockClock) -> None:
    async with ready(interval=900, idle_interval=7200) as one:
        await trio.sleep(900 + 1800 + 3600 + 7200)
        assert one.asked["FindFolder"] == 4
        one.asked.clear()
        await trio.sleep(2 * 86400)
        assert one.asked["FindFolder"] == 24
        # What happens in it brings it back.
        await one.happen(one.mailbox.deliver("again", SENDER, clock()))
        one.asked.clear()
        await trio.sleep(1000)
        assert one.asked["FindFolder"] == 1


@pytest.mark.parametrize("small", [True, False])
async def test_until_there_are_states_a_folder_is_told_as_a_whole_or_by_times(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with office(builders=0) as one:
        box, drafts = one.mailbox, one.mailbox.distinguished("drafts")
        await one.happen(box.save(drafts, "IPM.Note", "a", clock()))
        await one.happen(box.save(drafts, "IPM.Note", "b", clock()))
        await trio.sleep(10)
        await one.happen(box.mark(box.latest(drafts, 1)[0], clock(), read=False))
        one.gap(None, "start")
        await one.settle(600)
        one.clear()
        since = trio.current_time()
        gone, kept = box.latest(drafts, 2)
        await one.keep(box.purge(gone, clock()))
        await one.keep(box.edit(kept, "changed", clock()))
        await one.keep(box.deliver("new", SENDER, clock()))
        (mail,) = box.latest(box.distinguished("inbox"), 1)
        await trio.sleep(10)
        one.gap(since)
        await one.settle()
        items = [(type_, id_) for type_, id_ in one.told if type_.startswith("item.")]
        assert sorted(items) == sorted(
            [
                ("item.created", mail.id),
                ("item.new_mail", mail.id),
                ("item.modified", kept.id),
                ("item.deleted", gone.id),
            ]
        )
        # The inbox was empty: all in it is new.
        assert one.asked["SyncFolderItems"] == 1 + small
        assert one.asked["FindItem"] == (not small)
        # What it cannot see it says.
        assert [kind for kind, _ in one.lifecycle] == ["gap", "gap", "recovered"]
        assert "Drafts" in (one.lifecycle[1][1] or "")
        assert "Inbox" not in (one.lifecycle[1][1] or "")


async def test_a_gap_before_the_first_comparison(autojump_clock: trio.testing.MockClock) -> None:
    """The stream was there for a moment, was lost, and came back before anything was known."""
    async with office(builders=0) as one:
        since = trio.current_time()
        await one.keep(one.mailbox.deliver("missed", SENDER, clock()))
        one.gap(since)
        await one.settle()
        (mail,) = one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)
        assert ("item.created", mail.id) in one.told


async def test_a_state_that_was_made_inside_the_gap_is_not_trusted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with office() as one:
        one.catch_up.subscribed(one.mailbox.address, new=True)
        await trio.sleep(1)
        since = trio.current_time()
        await one.keep(one.mailbox.deliver("missed", SENDER, clock()))
        await trio.sleep(5)
        one.gap(None, "start")
        await one.settle()
        assert one.recovered == []
        one.gap(since)
        await one.settle()
        (mail,) = one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)
        assert ("item.created", mail.id) in one.told


@pytest.mark.parametrize("quietly", [False, True])
async def test_states_that_the_server_knows_no_longer(
    quietly: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with ready() as one:
        box, inbox = one.mailbox, one.mailbox.distinguished("inbox")
        for number in range(30):
            await one.happen(box.deliver(f"{number}", SENDER, clock()))
            await trio.sleep(1)
        await one.happen(box.mark(box.latest(inbox, 1)[0], clock(), read=True))
        await trio.sleep(600)
        one.catch_up.sweep()
        await one.settle()
        assert one.recovered == []
        one.clear()
        since = trio.current_time()
        await one.keep(box.deliver("missed", SENDER, clock()))
        box.lose_sync_states(quietly=quietly)
        one.gap(since)
        await one.settle()
        mail, last = box.latest(inbox, 2)
        items = [(type_, id_) for type_, id_ in one.told if type_.startswith("item.")]
        # What came in the last second that is known is told again.
        again = {("item.modified", last.id)}
        assert set(items) - again == {("item.created", mail.id), ("item.new_mail", mail.id)}
        # The states are built anew, and serve the next gap.
        one.clear()
        since = trio.current_time()
        await one.keep(box.purge(mail, clock()))
        one.gap(since)
        await one.settle()
        assert ("item.deleted", mail.id) in one.told


async def test_folders_that_came_went_and_moved(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        box = one.mailbox
        inbox, top = box.distinguished("inbox"), box.distinguished("msgfolderroot")
        for name in ("moves", "goes", "renamed"):
            await one.happen(box.create_folder(name, inbox, clock()))
        moves, goes, renamed = box.own_folders()
        one.catch_up.sweep()
        await one.settle()
        assert one.recovered == []
        since = trio.current_time()
        await one.keep(box.create_folder("comes", inbox, clock()))
        comes = box.own_folders()[-1]
        await one.keep(box.save(comes, "IPM.Note", "inside", clock()))
        await one.keep(box.move_folder(moves, top, clock()))
        await one.keep(box.rename_folder(renamed, "other", clock()))
        await one.keep(box.purge_folder(goes, clock()))
        one.gap(since)
        await one.settle()
        assert [each for each in one.told if each[1] not in (inbox.id, top.id)] == [
            ("folder.created", comes.id),
            ("folder.moved", moves.id),
            ("item.created", next(iter(comes.items))),
            ("folder.modified", renamed.id),
            ("folder.deleted", goes.id),
        ]
        assert one.lost() == []


async def test_many_changes_come_in_pages(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        box = one.mailbox
        since = trio.current_time()
        for number in range(1100):
            await one.keep(box.deliver(f"{number}", SENDER, clock()))
        one.gap(since)
        await one.settle()
        assert one.asked["SyncFolderItems"] == 3
        assert Counter(type_ for type_, _ in one.told)["item.created"] == 1100


async def test_failures_are_tried_again_and_nothing_is_told_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready() as one:
        box = one.mailbox
        await one.keep(box.deliver("missed", SENDER, clock()))
        since = trio.current_time()
        one.fail["FindFolder"] = [Failure(code="ErrorInternalServerError")] * 2
        one.fail["SyncFolderItems"] = [Failure(code="ErrorServerBusy", wait=30.0)]
        one.gap(since)
        await one.settle(300)
        assert [line["failures"] for line in one.logged("catchup.failed")] == [1, 2, 3]
        assert [kind for kind, _ in one.lifecycle] == ["gap", "recovered"]
        assert Counter(type_ for type_, _ in one.told)["item.created"] == 1
        assert one.catch_up.open_gaps == 0


async def test_a_mailbox_that_cannot_be_read_is_asked_ever_more_seldom(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready() as one:
        box = one.mailbox
        since = trio.current_time()
        await one.keep(box.deliver("missed", SENDER, clock()))
        one.fail["FindFolder"] = [Failure(code="ErrorAccessDenied")] * 10
        one.gap(since)
        await one.settle(600)
        assert one.asked["FindFolder"] == 6  # at once, and after 15, 45, … 465 s
        assert one.catch_up.open_gaps == 1
        one.fail.clear()
        await one.settle(600)
        assert one.catch_up.open_gaps == 0
        assert ("item.created", box.latest(box.distinguished("inbox"), 1)[0].id) in one.told


async def test_a_folder_that_cannot_be_read_does_not_hold_up_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready() as one:
        box = one.mailbox
        since = trio.current_time()
        await one.keep(box.deliver("missed", SENDER, clock()))
        await one.keep(box.save(box.distinguished("drafts"), "IPM.Note", "missed", clock()))
        one.fail["SyncFolderItems"] = [Failure(code="ErrorAccessDenied")]
        one.gap(since)
        await one.settle()
        assert [type_ for type_, _ in one.told if type_.startswith("item.")] == ["item.created"]
        assert "Inbox (ErrorAccessDenied)" in (one.lifecycle[1][1] or "")


async def test_without_a_stream_a_gap_waits(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        one.streaming = False
        await one.keep(one.mailbox.deliver("missed", SENDER, clock()))
        one.gap(trio.current_time())
        await one.settle()
        assert one.asked == Counter()
        one.streaming = True
        one.gap(trio.current_time())
        await one.settle(5)
        assert Counter(type_ for type_, _ in one.told)["item.created"] == 1


async def test_a_subscription_to_one_folder_and_to_new_mail(autojump_clock: trio.testing.MockClock) -> None:
    async with ready(folders=("inbox",), kinds=frozenset(("new_mail",))) as one:
        box = one.mailbox
        drafts = box.distinguished("drafts")
        await one.keep(box.save(drafts, "IPM.Note", "draft", clock()))
        await one.keep(box.move(box.latest(drafts, 1)[0], box.distinguished("inbox"), clock()))
        one.catch_up.sweep()
        await one.settle()
        since = trio.current_time()
        await trio.sleep(400)
        one.clear()
        await one.keep(box.deliver("missed", SENDER, clock()))
        (mail,) = box.latest(box.distinguished("inbox"), 1)
        one.gap(since)
        await one.settle()
        assert one.told == [("item.new_mail", mail.id)]


async def test_signal_only_tells_of_the_gap(autojump_clock: trio.testing.MockClock) -> None:
    async with office(mode="signal") as one:
        since = trio.current_time()
        await one.keep(one.mailbox.deliver("missed", SENDER, clock()))
        await trio.sleep(30)
        one.gap(since, "missed")
        one.gap(since, "regrouped")
        await one.settle()
        assert one.lifecycle == [("gap", "missed, regrouped: from 2027-01-15T08:00:00Z on")]
        assert one.asked == Counter()


async def test_off_is_off(autojump_clock: trio.testing.MockClock) -> None:
    async with office(mode="off") as one:
        await one.happen(one.mailbox.deliver("mail", SENDER, clock()))
        one.gap(0.0)
        await one.settle(3600)
        assert one.lifecycle == []
        assert one.asked == Counter()


async def test_more_than_can_be_remembered(autojump_clock: trio.testing.MockClock) -> None:
    """What was told is told again then, and is not taken for missed."""
    async with ready() as one:
        one.catch_up.delivered.each = 100
        for _ in range(40):
            await one.happen(one.mailbox.deliver("mail", SENDER, clock()))
        one.catch_up.sweep()
        await one.settle()
        assert len(one.recovered) > 10
        assert one.silent == []
        one.clear()
        one.catch_up.sweep()
        await one.settle()
        assert one.recovered == []


async def test_much_traffic_brings_a_sweep_early(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        one.catch_up.delivered.each = 400
        for _ in range(200):
            await one.happen(one.mailbox.deliver("mail", SENDER, clock()))
            await trio.sleep(1)
        assert one.asked["FindFolder"] >= 2
        assert one.recovered == []


@pytest.mark.parametrize("seed", range(40))
async def test_nothing_is_lost(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """Users at work, a stream that loses events and has gaps, comparisons at any moment, requests that fail."""
    rng = Random(f"histories {seed}")
    async with ready(interval=200) as one:
        old = things(one)
        users = Traffic([one.mailbox], 5.0, Random(f"users {seed}"))
        await happens(one, users, rng, seconds=300, leaks=(0.0, 0.0, 0.3), failures=FAILURES)
        one.fail.clear()
        one.gap(0.0)
        await one.settle(900)
        assert one.lost() == []
        assert phantoms(one) == []
        assert too_old(one, old) == []


FAILURES = dict.fromkeys(("FindFolder", "SyncFolderItems", "FindItem"), ("ErrorInternalServerError",))
