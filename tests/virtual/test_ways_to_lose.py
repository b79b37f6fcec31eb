"""Each way to lose an event that was found in catching up, on a virtual clock, with mailboxes of the simulator."""

from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from listener.simulator.mailstore import Item
from listener.simulator.traffic import Traffic
from tests.virtual.history import happens, phantoms, things, too_old
from tests.virtual.office import Office, office, ready
from tests.virtual.wire import clock

SENDER = "ben@example.org"


async def mail(one: Office, *, heard: bool = True) -> Item:
    """A mail arrives, of which the stream tells or not."""
    tell = one.happen if heard else one.keep
    await tell(one.mailbox.deliver("mail", SENDER, clock()))
    return one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)[0]


async def test_a_folder_that_changed_before_anybody_had_looked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with office(builders=0) as one:
        box, since = one.mailbox, trio.current_time()
        inbox = box.distinguished("inbox")
        await one.keep(box.create_folder("new", inbox, clock()))
        await one.happen(box.save(box.distinguished("drafts"), "IPM.Note", "draft", clock()))
        one.gap(since)
        await one.settle()
        told = {id_ for type_, id_ in one.told if type_ == "folder.modified"}
        assert {inbox.id, box.own_folders()[0].id} <= told
        assert box.distinguished("drafts").id not in told
        assert one.lost() == []


@pytest.mark.parametrize("small", [True, False])
async def test_an_item_that_goes_from_a_folder_without_a_state(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was seen to be there before, by the stream or by a comparison, so that only memory tells of it."""
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with office(builders=0) as one:
        old = await mail(one)  # the folder is not empty when it is looked at for the first time
        await trio.sleep(400)
        one.gap(None, "start")
        await one.settle()
        streamed, found = await mail(one), await mail(one, heard=False)
        one.gap(trio.current_time() - 5)
        await one.settle(600)
        assert ("item.created", found.id) in one.told
        one.clear()
        since = trio.current_time()
        for item in (old, streamed, found):
            await one.keep(one.mailbox.purge(item, clock()))
        one.gap(since)
        await one.settle()
        gone = [id_ or "" for type_, id_ in one.told if type_ == "item.deleted"]
        assert sorted(gone) == sorted([old.id, streamed.id, found.id])


@pytest.mark.parametrize("quietly", [False, True])
async def test_an_item_that_goes_while_the_server_forgets_the_state(
    quietly: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with ready() as one:
        staying, going = await mail(one), await mail(one)
        one.catch_up.sweep()
        await one.settle()
        since = trio.current_time()
        one.mailbox.lose_sync_states(quietly=quietly)
        await one.keep(one.mailbox.purge(going, clock()))
        coming = await mail(one, heard=False)
        one.gap(since)
        await one.settle()
        assert ("item.deleted", going.id) in one.told
        assert ("item.created", coming.id) in one.told
        assert ("item.deleted", staying.id) not in one.told
        assert one.lost() == []


@pytest.mark.parametrize("doubted", [False, True])
async def test_an_item_that_came_and_went_while_more_was_told_than_is_remembered(
    doubted: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """No state tells of it: it was not there before, and is not there after."""
    async with ready() as one:
        mailbox = one.mailbox.address
        item = await mail(one)
        if doubted:  # as after a start that could not recall all
            one.catch_up.delivered.of(mailbox).forget()
            one.catch_up.delivered.of(mailbox).forgetful = False
            one.catch_up.delivered.doubt([mailbox])
        else:
            one.catch_up.delivered.each = 30
            for _ in range(20):
                await mail(one)
            assert one.catch_up.delivered.of(mailbox).forgetful
        since = trio.current_time()
        await one.keep(one.mailbox.purge(item, clock()))
        one.gap(since)
        await one.settle()
        assert ("item.deleted", item.id) in one.told
        assert one.lost() == []
        assert ("gap", "what was deleted cannot be told in Inbox") in one.lifecycle


@pytest.mark.parametrize("quietly", [False, True])
async def test_items_that_go_from_a_large_folder_while_the_server_forgets_the_state(
    quietly: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 100)
    async with ready() as one:
        items = [await mail(one) for _ in range(250)]
        await trio.sleep(900)
        one.catch_up.sweep()
        await one.settle()
        since = trio.current_time()
        one.mailbox.lose_sync_states(quietly=quietly)
        for item in items[:30]:
            await one.keep(one.mailbox.purge(item, clock()))
        one.clear()
        one.gap(since)
        await one.settle()
        gone = {id_ for type_, id_ in one.told if type_ == "item.deleted"}
        assert gone == {item.id for item in items[:30]}
        assert one.asked["SyncFolderItems"] + one.asked["GetItem"] < 15


async def test_many_items_are_looked_for_by_having_all_told_that_are_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready() as one:
        one.catch_up.delivered.each = 1
        items = [await mail(one) for _ in range(250)]
        since = trio.current_time()
        await one.keep(one.mailbox.purge(items[7], clock()))
        one.clear()
        one.gap(since)
        await one.settle()
        assert [id_ for type_, id_ in one.told if type_ == "item.deleted"] == [items[7].id]
        assert one.asked["GetItem"] <= 1
        assert one.asked["SyncFolderItems"] <= 3


async def test_what_a_stream_kept_back_before_the_state_was_built(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with office(builders=0, interval=100) as one:
        await mail(one)
        await trio.sleep(400)
        one.gap(None, "start")
        await one.settle(1)
        kept = await mail(one, heard=False)
        # The state is built now, and has it.
        one.catch_up.builders = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.catch_up._serve, one.catch_up._builds, one.catch_up._build)
            await one.settle(300)
            nursery.cancel_scope.cancel()
        assert ("item.created", kept.id) in one.told
        assert one.lost() == []


async def test_what_was_in_a_folder_that_went(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        box = one.mailbox
        await one.happen(box.create_folder("goes", box.distinguished("inbox"), clock()))
        (folder,) = box.own_folders()
        item = await mail(one)
        await one.happen(box.move(item, folder, clock()))
        since = trio.current_time()
        await one.keep(box.edit(item, "changed", clock()))
        await one.keep(box.purge_folder(folder, clock()))
        one.gap(since)
        await one.settle()
        assert {("item.deleted", item.id), ("folder.deleted", folder.id)} <= set(one.told)
        assert one.lost() == []


async def test_a_folder_that_goes_between_being_found_and_being_looked_at(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready() as one:
        box = one.mailbox
        since = trio.current_time()
        await one.keep(box.create_folder("new", box.distinguished("inbox"), clock()))
        (folder,) = box.own_folders()
        await one.keep(box.save(folder, "IPM.Note", "inside", clock()))

        def before(operation: str) -> None:
            if operation == "SyncFolderItems" and folder.id in box.folders:
                one.lines += one.exchange.publish(box.purge_folder(folder, clock()))

        one.before = before
        one.gap(since)
        await one.settle()
        one.catch_up.sweep()
        await one.settle()
        told = [each for each in one.told if each[1] == folder.id]
        assert told == [("folder.created", folder.id), ("folder.deleted", folder.id)]


async def test_a_sweep_that_comes_due_between_two_streams_is_made_up_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready(interval=100) as one:
        kept = await mail(one, heard=False)
        one.streaming = False
        await trio.sleep(200)
        assert one.asked["FindFolder"] == 0
        one.streaming = True
        await one.settle(60)
        assert ("item.created", kept.id) in one.told


async def test_a_gap_counts_as_open_until_it_is_filled(autojump_clock: trio.testing.MockClock) -> None:
    async with ready() as one:
        await mail(one, heard=False)
        since = trio.current_time()
        one.gap(since - 1)
        await trio.sleep(1)  # it waits for a stream that may be late
        assert (one.catch_up.open_gaps, one.catch_up.lagging(since)) == (1, 1)
        # Another one begins meanwhile, and has something missing of its own.
        await mail(one, heard=False)
        one.gap(since)
        await trio.sleep(2)
        assert one.catch_up.open_gaps == 1
        await one.settle()
        assert (one.catch_up.open_gaps, one.catch_up.lagging(since)) == (0, 0)
        assert one.catch_up.lagging(trio.current_time()) == 1


@pytest.mark.parametrize("seed", range(15))
async def test_nothing_is_lost_from_the_first_moment_on(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """No first states, or only slowly; a first look inside a gap; states that the server forgets; requests that
    fail for good reasons and bad."""
    rng = Random(f"beginnings {seed}")
    settings: dict[str, Any] = {name: rng.choice(values) for name, values in SETTINGS.items()}
    async with office(**settings) as one:
        users = Traffic([one.mailbox], 5.0, Random(f"users {seed}"))
        users.due(clock())
        await trio.sleep(20)
        await one.keep(users.due(clock()))
        old = things(one)
        assert len(old) > 20
        one.clear()
        await trio.sleep(1)  # within a second, nobody can tell what came before the subscription
        started_at = trio.current_time()
        one.gap(None, "start")
        await happens(
            one, users, rng, seconds=200, leaks=(0.0, 0.0, 0.0, 0.3), failures=FAILURES, forgetful=0.02
        )
        one.fail.clear()
        one.gap(started_at)
        await one.settle(1900)
        assert one.catch_up.open_gaps == 0
        # Of what was there before, only a SyncState knows that it has gone.
        assert [line for line in one.lost() if line.kind != "DeletedEvent" or line.id not in old] == []
        assert phantoms(one) == []
        assert too_old(one, old) == []


SETTINGS = {"interval": (20, 60, 200), "builders": (0, 1), "start_spread": (0, 30, 100)}
FAILURES = {
    "FindFolder": ("ErrorInternalServerError", "ErrorServerBusy", "ErrorAccessDenied"),
    "GetItem": ("ErrorInternalServerError", "ErrorServerBusy"),
    "SyncFolderItems": ("ErrorInternalServerError", "ErrorInvalidSyncStateData"),
}


@pytest.mark.parametrize("small", [True, False])
async def test_what_was_told_in_the_second_of_the_first_look_is_not_told_again(
    small: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with office() as one:
        await mail(one)
        edited = await mail(one)
        await one.happen(one.mailbox.edit(edited, "changed", clock()))
        later = await mail(one)
        kept = await mail(one, heard=False)
        one.gap(None, "start")
        await one.settle(30)
        await one.happen(one.mailbox.edit(later, "changed", clock()))
        one.catch_up.sweep()
        await one.settle()
        assert {id_ for _, id_ in one.told} <= {kept.id}
        missed = await mail(one, heard=False)
        one.catch_up.sweep()
        await one.settle()
        assert ("item.created", missed.id) in one.told
