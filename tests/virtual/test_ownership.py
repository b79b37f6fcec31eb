"""Servers that count subscription ids from 1 again, and servers whose affinity cookie suits one mailbox only."""

from typing import Any

import pytest
import trio
import trio.testing

from listener.simulator import responses
from listener.simulator.exchange import Exchange
from listener.simulator.http import Reply
from listener.simulator.settings import Rules, Settings
from tests.virtual.wire import clock
from tests.virtual.world import World, world

COUNTED = Settings(mailboxes=8, backends=1, rules=Rules(counted_ids=True))


def wrongly_told(there: World) -> list[Any]:
    """The events that a handler was told under another mailbox than the one that they happened in."""
    homes = {line.item_id or line.folder_id: line.mailbox for line in there.lines}
    return [c for c in there.notes.calls if homes.get(c.key.id, c.key.mailbox) != c.key.mailbox]


@pytest.mark.parametrize("strangers", [0, 5])
async def test_no_event_comes_under_another_mailbox_after_a_server_restarted(
    autojump_clock: trio.testing.MockClock, strangers: int
) -> None:
    """After the restart the old ids are other mailboxes', or those of another client of the same account."""
    async with world(COUNTED, affinity={"group_size": 2}) as there:
        await there.until_streaming()
        await there.caught_up(within=600)
        there.touch()
        await trio.sleep(10)
        for _ in range(3):
            there.order("backend_restart", seconds=2)
            for number in range(strangers):
                subscribe_stranger(there, there.mailboxes[-1 - number])
            for _ in range(40):
                there.touch()
                await trio.sleep(0.5)
        await there.until_streaming(within=300)
        await there.caught_up(within=600)
        assert wrongly_told(there) == []
        books = there.books()
        assert books.lost == []
        made = there.touch()
        await trio.sleep(5)
        assert made <= there.notes.came.keys(), "all mailboxes stream their own events again"


def subscribe_stranger(there: World, address: str) -> None:
    """Another client of the same account subscribes: its id may be one that the daemon remembers."""
    exchange = there.exchange
    mailbox = exchange.directory.find(address)
    assert mailbox is not None
    (backend,) = exchange.subscriptions.tables
    kinds = frozenset(("CreatedEvent", "NewMailEvent", "ModifiedEvent", "DeletedEvent", "MovedEvent"))
    user = exchange.settings.user
    exchange.subscriptions.add(backend, mailbox, user, user, kinds, None, clock())


REGROUP = ["ErrorProxyRequestNotAllowed", "ErrorReadEventsFailed", "ErrorMailboxMoveInProgress", "mixed"]


@pytest.mark.parametrize("code", REGROUP)
async def test_mailboxes_that_the_anchors_back_end_refuses_get_groups_of_their_own(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """97 Subscribe and 48 Autodiscover requests in 35 s, and it never ended."""
    codes = REGROUP[:3] if code == "mixed" else [code]
    handle, count = Exchange.handle, 0

    def picky(self: Exchange, request: Any, now: float) -> Reply:
        nonlocal count
        reply = handle(self, request, now)
        if b"<m:Subscribe>" in request.body:
            anchor = request.headers["x-anchormailbox"]
            user = next(a for a in there.mailboxes if f">{a}<".encode() in request.body)
            if anchor != user and "cookie" in request.headers:
                count += 1
                failure = responses.Failure(codes[count % len(codes)])
                message = responses.error("Subscribe", failure)
                reply.body = responses.envelope(responses.response("Subscribe", [message]))
        return reply

    async with world(Settings(mailboxes=6, backends=1)) as there:
        monkeypatch.setattr(Exchange, "handle", picky)
        await there.until_streaming(within=120)
        assert len(there.daemon.runners.by_group) == 6
        kinds = [what for _, _, what in there.wire.asked]
        assert kinds.count("Subscribe") <= 40
        made = there.touch()
        await trio.sleep(600)
        assert made <= there.notes.came.keys()
        assert [what for _, _, what in there.wire.asked].count("Subscribe") == kinds.count("Subscribe")
        assert not there.daemon.manager.duplicates


async def test_a_mailbox_that_is_refused_wherever_it_is_is_asked_for_slowly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(Settings(mailboxes=6, backends=1)) as there:
        bad = there.mailboxes[3]
        there.order("mailbox_disabled", mailbox=bad, seconds=7200.0, code="ErrorMailboxMoveInProgress")
        await there.until_streaming(5)
        await trio.sleep(7000)
        asked = [what for moment, _, what in there.wire.asked if moment > 600]
        assert asked.count("Subscribe") <= 60
        assert asked.count("Autodiscover") <= 150, "with those that look for all mailboxes now and then"
        await there.until_streaming(within=600)
