"""A mailbox is replaced under its address: everything in it has another id."""

from uuid import UUID

import pytest
import trio
import trio.testing

from listener.simulator.mailstore import Item
from tests.virtual.office import Office, ready
from tests.virtual.test_first_listening import another_process, fill
from tests.virtual.wire import clock

SENDER = "ben@example.org"
STORE = UUID("0a0b0c0d-1111-4222-8333-444455556666")


async def prepare(one: Office) -> None:
    await fill(one, 8)
    await trio.sleep(700)
    one.catch_up.sweep()
    await one.settle()
    one.clear()
    one.silent.clear()


async def mail(one: Office) -> Item:
    await one.keep(one.mailbox.deliver("new", SENDER, clock()))
    return one.mailbox.latest(one.mailbox.distinguished("inbox"), 1)[0]


def resets(one: Office) -> int:
    return [kind for kind, _ in one.lifecycle].count("reset")


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("folders", [None, ("inbox", "drafts")])
async def test_only_what_is_new_in_the_new_mailbox_is_reported(
    folders: tuple[str, ...] | None,
    small: bool,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("listener.catchup.resync.MAX_CHANGES", 512 if small else 4)
    async with ready(folders=folders) as one:
        await prepare(one)
        since = trio.current_time()
        await trio.sleep(100)
        one.mailbox.replace(STORE, clock())
        await trio.sleep(30)
        new = await mail(one)
        one.gap(since)
        await one.settle()
        assert sorted(one.told) == [("item.created", new.id), ("item.new_mail", new.id)]
        assert resets(one) == 1
        (line,) = one.logged("catchup.reset")
        assert line["mailbox"] == one.mailbox.address
        # From now on it is a mailbox like any other, for the next process too.
        for again in range(3):
            one.clear()
            since = trio.current_time()
            later = await mail(one)
            await one.keep(one.mailbox.purge(new, clock()))
            if again == 2:
                async with another_process(one):
                    one.gap(since, "start")
                    await one.settle(700)
            else:
                one.gap(since)
                await one.settle(700)
            inbox = one.mailbox.distinguished("inbox").id
            assert {each for each in one.told if each[1] != inbox} == {
                ("item.created", later.id),
                ("item.new_mail", later.id),
                ("item.deleted", new.id),
            }
            assert resets(one) == 0
            new = later


async def test_a_sweep_finds_it_and_asks_for_a_new_subscription(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready() as one:
        await prepare(one)
        one.mailbox.replace(STORE, clock())
        new = await mail(one)
        one.catch_up.sweep()
        await one.settle()
        assert sorted(one.told) == [("item.created", new.id), ("item.new_mail", new.id)]
        assert resets(one) == 1
        assert one.silent == [one.mailbox.address]
        one.clear()
        one.catch_up.sweep()
        await one.settle()
        assert (one.told, resets(one)) == ([], 0)


async def test_what_the_stream_reported_of_the_new_mailbox_is_not_reported_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ready() as one:
        await prepare(one)
        since = trio.current_time()
        one.mailbox.replace(STORE, clock())
        await trio.sleep(5)
        await one.happen(one.mailbox.deliver("heard", SENDER, clock()))
        one.gap(since)
        await one.settle()
        assert (one.told, resets(one)) == ([], 1)


async def test_a_server_that_leaves_the_top_folder_out_has_not_replaced_the_mailbox(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready() as one:
        await prepare(one)
        box = one.mailbox
        top = box.distinguished("msgfolderroot")
        original = box.below
        monkeypatch.setattr(box, "below", lambda folder: [f for f in original(folder) if f is not top])
        since = trio.current_time()
        new = await mail(one)
        one.gap(since)
        await one.settle()
        assert ("item.created", new.id) in one.told
        assert resets(one) == 0
        assert one.lost() == []
