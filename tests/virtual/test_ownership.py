"""Servers that reuse subscription ids after a restart, and servers whose affinity cookie fits one mailbox only."""

from typing import Any

import pytest
import trio
import trio.testing

from listener.simulator import responses
from listener.simulator.exchange import Exchange
from listener.simulator.http import Reply
from listener.simulator.settings import Rules, Settings
from tests.virtual.wire import clock
from tests.virtual.world import World, open_world

COUNTED = Settings(mailboxes=8, backends=1, rules=Rules(counted_ids=True))


def misattributed(world: World) -> list[Any]:
    """Return the events that a handler received with another mailbox than the one that changed."""
    homes = {line.item_id or line.folder_id: line.mailbox for line in world.lines}
    return [c for c in world.recorder.calls if homes.get(c.key.id, c.key.mailbox) != c.key.mailbox]


@pytest.mark.parametrize("strangers", [0, 5])
async def test_no_event_is_attributed_to_another_mailbox_after_a_server_restart(
    autojump_clock: trio.testing.MockClock, strangers: int
) -> None:
    """After the restart, the old ids belong to other mailboxes or to another client of the same account."""
    async with open_world(COUNTED, affinity={"group_size": 2}) as world:
        await world.until_streaming()
        await world.caught_up(within=600)
        world.change_each()
        await trio.sleep(10)
        for _ in range(3):
            world.inject("backend_restart", seconds=2)
            for number in range(strangers):
                subscribe_stranger(world, world.mailboxes[-1 - number])
            for _ in range(40):
                world.change_each()
                await trio.sleep(0.5)
        await world.until_streaming(within=300)
        await world.caught_up(within=600)
        assert misattributed(world) == []
        books = world.books()
        assert books.lost == []
        made = world.change_each()
        await trio.sleep(5)
        assert made <= world.recorder.received_at.keys(), "all mailboxes stream their own events again"


def subscribe_stranger(world: World, address: str) -> None:
    """Subscribe as another client of the same account. The daemon may remember the id as its own."""
    exchange = world.exchange
    mailbox = exchange.directory.find(address)
    assert mailbox is not None
    (backend,) = exchange.subscriptions.tables
    kinds = frozenset(("CreatedEvent", "NewMailEvent", "ModifiedEvent", "DeletedEvent", "MovedEvent"))
    user = exchange.settings.user
    exchange.subscriptions.add(backend, mailbox, user, user, kinds, None, clock())


REGROUP = ["ErrorProxyRequestNotAllowed", "ErrorReadEventsFailed", "ErrorMailboxMoveInProgress", "mixed"]


@pytest.mark.parametrize("code", REGROUP)
async def test_mailboxes_refused_by_the_anchors_back_end_get_their_own_groups(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Earlier, this caused 97 Subscribe and 48 Autodiscover requests in 35 s, without an end."""
    codes = REGROUP[:3] if code == "mixed" else [code]
    handle, count = Exchange.handle, 0

    def picky(self: Exchange, request: Any, now: float) -> Reply:
        nonlocal count
        reply = handle(self, request, now)
        if b"<m:Subscribe>" in request.body:
            anchor = request.headers["x-anchormailbox"]
            user = next(a for a in world.mailboxes if f">{a}<".encode() in request.body)
            if anchor != user and "cookie" in request.headers:
                count += 1
                failure = responses.Failure(codes[count % len(codes)])
                message = responses.error("Subscribe", failure)
                reply.body = responses.envelope(responses.response("Subscribe", [message]))
        return reply

    async with open_world(Settings(mailboxes=6, backends=1)) as world:
        monkeypatch.setattr(Exchange, "handle", picky)
        await world.until_streaming(within=120)
        assert len(world.daemon.runners.by_group) == 6
        kinds = [what for _, _, what in world.wire.requests]
        assert kinds.count("Subscribe") <= 40
        made = world.change_each()
        await trio.sleep(600)
        assert made <= world.recorder.received_at.keys()
        assert [what for _, _, what in world.wire.requests].count("Subscribe") == kinds.count("Subscribe")
        assert not world.daemon.manager.duplicates


async def test_mailbox_refused_in_every_group_is_retried_slowly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_world(Settings(mailboxes=6, backends=1)) as world:
        bad = world.mailboxes[3]
        world.inject("mailbox_disabled", mailbox=bad, seconds=7200.0, code="ErrorMailboxMoveInProgress")
        await world.until_streaming(5)
        await trio.sleep(7000)
        requests = [what for moment, _, what in world.wire.requests if moment > 600]
        assert requests.count("Subscribe") <= 60
        assert requests.count("Autodiscover") <= 150, "including the periodic refresh of all mailboxes"
        await world.until_streaming(within=600)
