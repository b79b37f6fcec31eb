"""One failing mailbox among 199 others, servers that allow one user per connection, and mailboxes that move."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
import trio.testing

from listener.simulator.settings import Network, Rules, Settings, StreamFormat
from tests.virtual.world import World, open_world

SECONDS = 30.0


async def delays(world: World, good: list[str], seconds: float = SECONDS) -> list[float]:
    """Change one of the `good` mailboxes ten times a second; return the delay of each event in seconds."""
    made: dict[str, float] = {}
    started_at, number = trio.current_time(), 0
    while trio.current_time() - started_at < seconds:
        for line in world.change(good[number % len(good)], "CreatedEvent"):
            made.setdefault(line.item_id or line.folder_id or "", trio.current_time())
        number += 1
        await trio.sleep(0.1)
    await trio.sleep(2)
    lost = made.keys() - world.recorder.received_at.keys()
    assert not lost, f"{len(lost)} of {len(made)}"
    return [world.recorder.received_at[item] - moment for item, moment in made.items()]


async def repeat(order: Callable[[], object], every: float = 5.0) -> None:
    for _ in range(round(SECONDS / every)):
        order()
        await trio.sleep(every)


FAILING = ["ErrorSubscriptionNotFound", "ErrorInternalServerTransientError", "ErrorReadEventsFailed"]


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("code", FAILING)
async def test_repeatedly_failing_subscription_delays_no_other_mailbox(
    autojump_clock: trio.testing.MockClock, code: str, ends: bool
) -> None:
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with open_world(settings) as world:
        await world.until_streaming()
        bad, good = world.mailboxes[77], [m for m in world.mailboxes if m != world.mailboxes[77]]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                repeat,
                lambda: world.inject("stream_code", code=code, mailbox=bad, ends=ends, within=4.0),
            )
            late = await delays(world, good)
        assert max(late) <= 1
        print(f"{code}: {max(late):.3f} s at most, {len(world.daemon.runners.by_group)} groups")
        await world.until_streaming()


@pytest.mark.parametrize(
    "code", ["ErrorNonExistentMailbox", "ErrorInternalServerError", "ErrorReadEventsFailed"]
)
async def test_mailbox_that_cannot_be_subscribed_delays_no_other(
    autojump_clock: trio.testing.MockClock, code: str
) -> None:
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with open_world(settings) as world:
        bad, good = world.mailboxes[77], [m for m in world.mailboxes if m != world.mailboxes[77]]
        world.inject("mailbox_disabled", mailbox=bad, seconds=SECONDS, code=code)
        await world.until_streaming(199)
        late = await delays(world, good)
        assert max(late) <= 1
        print(f"{code}: {max(late):.3f} s at most")
        await world.until_streaming(within=600)
        reported = [(event.type, event.mailbox) for event in world.recorder.lifecycle]
        if code == "ErrorNonExistentMailbox":
            assert reported == [("exchange.listener.suspended", bad), ("exchange.listener.resumed", bad)]
        else:
            assert reported == []
        made = world.change_each(bad)
        await trio.sleep(1)
        assert made <= world.recorder.received_at.keys()


@pytest.mark.parametrize("which", [0, 77])
async def test_revoked_impersonation_delays_no_other_mailbox(
    autojump_clock: trio.testing.MockClock, which: int
) -> None:
    """For the anchor, whose name the stream request has, and for another mailbox."""
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with open_world(settings) as world:
        await world.until_streaming()
        await trio.sleep(15)  # a stream that ends sooner is not reopened at once
        bad, good = world.mailboxes[which], [m for m in world.mailboxes if m != world.mailboxes[which]]
        world.inject("impersonation_withdrawn", mailbox=bad, seconds=SECONDS)
        world.inject("stream_code", code="ErrorSubscriptionNotFound", mailbox=bad)
        async with trio.open_nursery() as nursery:
            await trio.sleep(15)
            nursery.start_soon(repeat, lambda: world.inject("closed", within=4.0), 15.0)
            late = await delays(world, good)
        assert max(late) <= 1
        print(f"{max(late):.3f} s at most")
        assert world.recorder.lifecycle[0].mailbox == bad
        await world.until_streaming(within=600)


async def test_retry_delay_of_a_failing_mailbox_grows(autojump_clock: trio.testing.MockClock) -> None:
    """In half a day, it grows from 15 seconds to an hour."""
    async with open_world(Settings(mailboxes=10, backends=1, heartbeat=300.0)) as world:
        bad = world.mailboxes[7]
        world.inject("mailbox_disabled", mailbox=bad, seconds=43200)
        started_at = trio.current_time()
        await world.until_streaming(9)
        await trio.sleep(43200)
        attempts = [
            moment
            for moment, _, what in world.wire.requests
            if what == "Subscribe" and moment > started_at + 1
        ]
        pauses = [b - a for a, b in pairwise(attempts)]
        assert len(attempts) < 70
        assert min(pauses[-5:]) >= 1800
        assert max(pauses) <= 3601
        assert [event.type for event in world.recorder.lifecycle] == ["exchange.listener.suspended"], (
            "one event"
        )


GAPS = {"exchange.listener.gap", "exchange.listener.recovered"}


@pytest.mark.parametrize("mailboxes", [3, 24])
async def test_server_that_allows_one_user_per_connection_gets_groups_of_one(
    autojump_clock: trio.testing.MockClock, mailboxes: int
) -> None:
    settings = Settings(mailboxes=mailboxes, backends=2, rules=Rules(one_user_per_stream=True))
    async with open_world(settings) as world:
        took = await world.until_streaming(within=300)
        sizes = [len(runner.group.mailboxes) for runner in world.daemon.runners.by_group.values()]
        assert sizes == [1] * mailboxes
        # Subscriptions from before the first refusal are lost: this causes gaps, and nothing else.
        assert {event.type for event in world.recorder.lifecycle} <= GAPS, "no mailbox was suspended"
        await trio.sleep(3600)
        assert world.streaming == mailboxes
        made = world.change_each()
        await trio.sleep(1)
        assert made <= world.recorder.received_at.keys()
        print(f"{mailboxes} groups of one after {took:.1f} s")


# --- moves


@pytest.mark.parametrize("stream_format", [StreamFormat(), StreamFormat(ends_after_bad_id=False)])
@pytest.mark.parametrize("which", ["anchor", "other"])
async def test_mailbox_that_moves_to_another_server(
    autojump_clock: trio.testing.MockClock, which: str, stream_format: StreamFormat
) -> None:
    async with open_world(Settings(mailboxes=60, backends=3, stream_format=stream_format)) as world:
        await world.until_streaming()
        await trio.sleep(60)
        homes = world.exchange.directory.homes
        source, target, third = world.exchange.directory.backends
        members = sorted(mailbox for mailbox in world.mailboxes if homes[mailbox] == source)
        mover = members[0] if which == "anchor" else members[5]
        untouched = [stream for stream in world.exchange.streams if stream.backend == third]
        before = {runner.group.name for runner in world.daemon.runners.by_group.values()}
        world.inject("mailbox_move", mailbox=mover, backend=target.partition(".")[0])
        stayed = [mailbox for mailbox in world.mailboxes if mailbox != mover]
        late = await delays(world, stayed, 30)
        assert max(late) <= 1
        assert world.streaming == 60
        assert [stream for stream in world.exchange.streams if stream.backend == third] == untouched
        runners = world.daemon.runners.by_group
        assert set(runners) == before, "it has joined the existing group"
        (home,) = (runner for runner in runners.values() if mover in runner.group.mailboxes)
        assert home.group.grouping_information.startswith(target.partition(".")[0].upper())
        (left,) = (runner for runner in runners.values() if members[1] in runner.group.mailboxes)
        assert mover not in {member.mailbox for member in left.state.members}
        assert left.state.anchor == (members[1] if which == "anchor" else members[0])
        (sub,) = world.exchange.subscriptions.for_mailbox(mover)
        assert sub.backend == target
        assert world.subscribe_count(since=60.0) == 1, "only the moved mailbox is subscribed again"
        await trio.sleep(1800)  # the next window is opened with an anchor that is still in the group
        assert world.streaming == 60


async def test_back_end_that_fails(autojump_clock: trio.testing.MockClock) -> None:
    """Its mailboxes are on other servers, without a notice: they stream at once and are regrouped later."""
    async with open_world(Settings(mailboxes=60, backends=3), affinity={"refresh": 3600}) as world:
        await world.until_streaming()
        await trio.sleep(60)
        world.inject("failover", backend="ex01", seconds=86400.0)
        took = await world.until_streaming(within=30)
        assert {stream.backend[:4] for stream in world.exchange.streams} == {"ex02", "ex03"}
        await trio.sleep(2 * 3600)
        assert world.streaming == 60
        homes = world.exchange.directory.homes
        assert all(each.backend == homes[each.mailbox] for each in world.exchange.subscriptions)
        print(f"failover of a third of the mailboxes took {took:.2f} s")


async def test_unannounced_move_is_found_by_the_refresh(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_world(Settings(mailboxes=30, backends=3), affinity={"refresh": 3600}) as world:
        await world.until_streaming()
        mover = world.mailboxes[4]
        homes = world.exchange.directory.homes
        homes[mover] = next(each for each in world.exchange.directory.backends if each != homes[mover])
        await trio.sleep(3700)
        backends = {each.backend for each in world.exchange.subscriptions.for_mailbox(mover) if each.stream}
        assert backends == {homes[mover]}
        assert world.streaming == 30
