"""Server outages of a second or an hour, and the recovery.

EWS_LISTENER_MAILBOXES=10000 tests a very large organization, EWS_LISTENER_SEEDS=3 tests more random seeds.
"""

import os
from itertools import pairwise

import pytest
import trio
import trio.testing

from listener.simulator.settings import Network, Settings
from tests.virtual.world import World, open_world

HOUR = 3600.0
MANY = int(os.environ.get("EWS_LISTENER_MAILBOXES", "2000"))
SEEDS = range(int(os.environ.get("EWS_LISTENER_SEEDS", "1")))


def by_group(world: World, since: float) -> dict[str, list[float]]:
    """Return when each group sent requests since then."""
    home = {
        mailbox: name for name, r in world.daemon.runners.by_group.items() for mailbox in r.group.mailboxes
    }
    moments: dict[str, list[float]] = {name: [] for name in world.daemon.runners.by_group}
    for moment, anchor, _ in world.wire.requests:
        if moment > since:
            moments[home[anchor]].append(moment)
    return moments


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["refuse", "reset", "503"])
async def test_after_an_hour_of_outage_retries_are_slow_and_recovery_is_fast(
    autojump_clock: trio.testing.MockClock, how: str, seed: int
) -> None:
    settings = Settings(mailboxes=60, backends=4, seed=seed)
    async with open_world(settings, affinity={"group_size": 5}) as world:
        await world.until_streaming()
        await trio.sleep(60)
        started_at = trio.current_time()
        world.inject("outage", seconds=HOUR, how=how)
        await trio.sleep(HOUR)
        requests = by_group(world, started_at)
        assert len(requests) >= 12
        for moments in requests.values():
            assert 30 <= len(moments) <= 60
            late = [moment for moment in moments if moment > started_at + 180]
            assert min(b - a for a, b in pairwise(late)) >= 60
        took = await world.until_streaming(within=120)
        made = world.change_each()
        await trio.sleep(1)
        assert made <= world.recorder.received_at.keys()
        assert world.wire.most <= 10
        print(f"{how}: {max(map(len, requests.values()))} requests a group, back after {took:.1f} s")


async def test_single_group_recovers_fast_too(autojump_clock: trio.testing.MockClock) -> None:
    """No other group notices the server's return first and wakes it."""
    async with open_world(Settings(mailboxes=5, backends=1)) as world:
        await world.until_streaming()
        world.inject("outage", seconds=HOUR)
        await trio.sleep(HOUR)
        await world.until_streaming(within=120)


async def test_200_subscriptions_of_a_back_end_that_was_killed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The back end restarts at once and allows 10 concurrent requests of 50 ms each."""
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with open_world(settings) as world:
        await world.until_streaming()
        assert len(world.daemon.runners.by_group) == 1
        await trio.sleep(60)
        world.inject("backend_restart")
        assert not list(world.exchange.subscriptions)
        took = await world.until_streaming(within=5)
        assert world.wire.most <= 10
        print(f"200 subscriptions are back after {took:.2f} s")


async def test_thousands_of_mailboxes_are_subscribed_without_a_burst(
    autojump_clock: trio.testing.MockClock,
) -> None:
    settings = Settings(mailboxes=MANY, backends=10, heartbeat=300.0, network=Network(latency=0.05))
    async with open_world(settings) as world:
        took = await world.until_streaming(within=300)
        assert world.wire.most == 10
        assert world.subscribe_count(since=0) == MANY
        progress = [line["streaming"] for line in world.logged("listener.progress")]
        assert len(progress) >= took // 10 - 1
        assert progress == sorted(progress)
        assert progress[0] < MANY
        print(f"{MANY} stream after {took:.0f} s, 10 at the same time, progress {progress}")
        await trio.sleep(60)
        started_at, lost = trio.current_time(), 0
        for backend in world.exchange.directory.backends[:2]:
            lost += len(world.exchange.subscriptions.tables[backend])
            world.inject("backend_restart", backend=backend)
        took = await world.until_streaming(within=60)
        assert world.wire.most == 10
        assert world.subscribe_count(since=started_at) == lost, "no mailbox is subscribed twice"
        print(f"{lost} are back after {took:.0f} s")
