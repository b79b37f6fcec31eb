"""What was there before a mailbox was listened to, and what is reported of it: nothing, or a backfill, once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio
import trio.testing

from listener.catchup.catchup import CatchUp
from tests.catchup.test_catchup import Crashing
from tests.virtual.history import things, too_old
from tests.virtual.office import Office, office
from tests.virtual.wire import EPOCH, clock

SENDER = "ben@example.org"


async def fill(one: Office, count: int = 5) -> None:
    """Mail comes, one a second, a draft is edited, and a folder is made with something in it."""
    box, drafts = one.mailbox, one.mailbox.distinguished("drafts")
    for number in range(count):
        await one.keep(box.deliver(f"{number}", SENDER, clock()))
        await trio.sleep(1)
    await one.keep(box.save(drafts, "IPM.Note", "draft", clock()))
    await one.keep(box.edit(box.latest(drafts, 1)[0], "edited", clock()))
    await one.keep(box.create_folder(f"at {clock()}", box.distinguished("inbox"), clock()))
    await one.keep(box.save(box.own_folders()[-1], "IPM.Note", "inside", clock()))


@asynccontextmanager
async def another_process(one: Office, **settings: object) -> AsyncIterator[None]:
    """The listener begins again, with what it had kept and what handlers were told."""
    told = list(one.events)
    one.catch_up = CatchUp(
        routes=one,
        states=one.states,
        kinds=one.kinds,
        now=one.now,
        **settings,  # type: ignore[arg-type]
    )
    one.catch_up.note(told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.catch_up.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("behind", [-600.0, 0.0, 600.0])
@pytest.mark.parametrize("looked", [False, True])
async def test_a_restart_right_after_the_first_start(
    looked: bool, behind: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Whether a mailbox was looked at before that or not, and whatever the clocks say."""
    async with office(builders=0) as one:
        one.behind = behind
        await fill(one)
        old = things(one)
        one.clear()
        address = one.mailbox.address
        one.catch_up.subscribed(address, new=True)
        await trio.sleep(1)
        if looked:
            one.gap(None, "start")
        await one.happen(one.mailbox.deliver("heard", SENDER, clock()))
        await trio.sleep(4)
        since = trio.current_time()
        await one.keep(one.mailbox.deliver("missed", SENDER, clock()))
        (missed,) = one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)
        async with another_process(one):
            one.catch_up.subscribed(address, new=False)
            one.gap(since, "start")
            await one.settle()
        assert too_old(one, old) == []
        assert {id_ for type_, id_ in one.told} == {missed.id, one.mailbox.distinguished("inbox").id}
        assert ("item.created", missed.id) in one.told


@pytest.mark.parametrize("earlier", [0.0, 30.0])
async def test_a_crash_within_the_second_of_the_first_subscribe(
    earlier: float, autojump_clock: trio.testing.MockClock
) -> None:
    """What was on its way then is found, however long before the mark the gap is taken to begin."""
    async with office(builders=0) as one:
        address = one.mailbox.address
        await fill(one)
        old = things(one)
        one.clear()
        await trio.sleep(1.2)  # what is older is of another second
        since = trio.current_time() - earlier
        one.catch_up.subscribed(address, new=True)
        await trio.sleep(0.2)
        await one.keep(one.mailbox.deliver("on its way", SENDER, clock()))
        (lost,) = one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)
        async with another_process(one):
            one.catch_up.subscribed(address, new=False)
            one.gap(since, "start")
            await one.settle()
        assert ("item.created", lost.id) in one.told
        assert too_old(one, old) == []


@pytest.mark.parametrize("writes", range(4))
async def test_a_crash_while_a_mailbox_is_first_looked_at(
    writes: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with office() as one:
        await fill(one)
        old = things(one)
        one.clear()
        crashing = Crashing(one.publish, writes)
        crashing._kept = one.states._kept
        one.catch_up.states = crashing
        one.catch_up.subscribed(one.mailbox.address, new=True)
        await trio.sleep(1)
        one.gap(None, "start")
        await trio.sleep(30)
        since = trio.current_time()
        await one.keep(one.mailbox.deliver("missed", SENDER, clock()))
        async with another_process(one):
            one.gap(since, "start")
            await one.settle()
        assert too_old(one, old) == []
        assert one.lost() == []


async def test_a_mailbox_that_is_listened_to_again(autojump_clock: trio.testing.MockClock) -> None:
    """It begins where it ended, not where it first began."""
    async with office() as one:
        await fill(one)
        old = things(one)
        one.catch_up.subscribed(one.mailbox.address, new=True)
        await trio.sleep(1)
        one.gap(None, "start")
        await one.settle()
        one.catch_up.drop(one.mailbox.address)
        one.clear()
        await fill(one)
        one.catch_up.subscribed(one.mailbox.address, new=True)
        one.gap(None, "start")
        await one.settle()
        assert too_old(one, old) == []
        assert one.lost() == []


async def test_what_is_old_and_changed_since_is_modified(autojump_clock: trio.testing.MockClock) -> None:
    async with office(builders=0) as one:
        await fill(one)
        old = things(one)
        item = one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)[0]
        one.catch_up.subscribed(one.mailbox.address, new=True)
        await trio.sleep(1)
        since = trio.current_time()
        await one.keep(one.mailbox.mark(item, clock(), read=True))
        await one.keep(one.mailbox.rename_folder(one.mailbox.own_folders()[0], "renamed", clock()))
        one.gap(None, "start")
        await one.settle()
        one.gap(since)
        await one.settle()
        assert too_old(one, old) == []
        assert ("item.modified", item.id) in one.told
        assert ("folder.modified", one.mailbox.own_folders()[0].id) in one.told
        assert len(one.told) == 3  # and the inbox


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("initial", [100.0, datetime.fromtimestamp(EPOCH + 1000, UTC)])
async def test_a_backfill_is_reported_once(
    initial: float | datetime,
    small: bool,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 0)
    async with office(initial=initial) as one:
        await fill(one)
        old = things(one)
        await trio.sleep(1000)
        before = things(one)
        await fill(one)
        new = things(one) - before
        edited = one.mailbox.latest(one.mailbox.distinguished("drafts"), 2)[1]
        await one.keep(one.mailbox.edit(edited, "again", clock()))
        one.catch_up.subscribed(one.mailbox.address, new=True)
        await trio.sleep(1)
        one.gap(None, "start")
        await one.settle()
        items = new - set(one.mailbox.folders)
        inbox = one.mailbox.distinguished("inbox")
        mail = {id_ for id_ in inbox.items if id_ in items}
        expected = {("item.created", id_) for id_ in items} | {("item.new_mail", id_) for id_ in mail}
        assert set(one.told) == expected
        assert too_old(one, old) == []
        for again in range(2):
            await trio.sleep(400 * again)
            async with another_process(one, initial=initial):
                one.gap(trio.current_time() - 30, "start")
                await one.settle()
        assert len(one.told) == len(expected)


async def test_folders_that_are_listened_to_later_are_not_new(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with office(folders=("inbox",)) as one:
        await fill(one)
        one.catch_up.subscribed(one.mailbox.address, new=True)
        await trio.sleep(1)
        one.gap(None, "start")
        await one.settle()
        old = things(one)
        one.clear()
        for folders in (None, ("inbox", "drafts"), ("calendar",), None):
            one.folders = folders
            since = trio.current_time()
            one.gap(since, "lost")
            await one.settle(700)
            assert one.told == []
        since = trio.current_time()
        await one.keep(one.mailbox.save(one.mailbox.distinguished("drafts"), "IPM.Note", "new", clock()))
        one.gap(since)
        await one.settle()
        assert "item.created" in {type_ for type_, _ in one.told}
        assert too_old(one, old) == []
        assert one.lost() == []
