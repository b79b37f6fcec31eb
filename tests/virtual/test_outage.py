"""Servers that are away for a second or for an hour, and what comes afterwards.

EWS_LISTENER_MAILBOXES=10000 makes the organisation as large as they come, EWS_LISTENER_SEEDS=3 throws the dice again.
"""

import os
from itertools import pairwise

import pytest
import trio
import trio.testing

from listener.simulator.settings import Network, Settings
from tests.virtual.world import World, world

HOUR = 3600.0
MANY = int(os.environ.get("EWS_LISTENER_MAILBOXES", "2000"))
SEEDS = range(int(os.environ.get("EWS_LISTENER_SEEDS", "1")))


def by_group(there: World, since: float) -> dict[str, list[float]]:
    """When each group asked for something since then."""
    home = {
        mailbox: name for name, r in there.daemon.runners.by_group.items() for mailbox in r.group.mailboxes
    }
    moments: dict[str, list[float]] = {name: [] for name in there.daemon.runners.by_group}
    for moment, anchor, _ in there.wire.asked:
        if moment > since:
            moments[home[anchor]].append(moment)
    return moments


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["refuse", "reset", "503"])
async def test_after_an_hour_of_outage_retries_are_slow_and_recovery_is_fast(
    autojump_clock: trio.testing.MockClock, how: str, seed: int
) -> None:
    settings = Settings(mailboxes=60, backends=4, seed=seed)
    async with world(settings, affinity={"group_size": 5}) as there:
        await there.until_streaming()
        await trio.sleep(60)
        started_at = trio.current_time()
        there.order("outage", seconds=HOUR, how=how)
        await trio.sleep(HOUR)
        asked = by_group(there, started_at)
        assert len(asked) >= 12
        for moments in asked.values():
            assert 30 <= len(moments) <= 60
            late = [moment for moment in moments if moment > started_at + 180]
            assert min(b - a for a, b in pairwise(late)) >= 60
        took = await there.until_streaming(within=120)
        made = there.touch()
        await trio.sleep(1)
        assert made <= there.notes.came.keys()
        assert there.wire.most <= 10
        print(f"{how}: {max(map(len, asked.values()))} requests a group, back after {took:.1f} s")


async def test_single_group_recovers_fast_too(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody else hears the server first and wakes it."""
    async with world(Settings(mailboxes=5, backends=1)) as there:
        await there.until_streaming()
        there.order("outage", seconds=HOUR)
        await trio.sleep(HOUR)
        await there.until_streaming(within=120)


async def test_200_subscriptions_of_a_back_end_that_was_killed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It begins anew at once, and allows 10 requests side by side, which take 50 ms each."""
    settings = Settings(mailboxes=200, backends=1, network=Network(latency=0.05))
    async with world(settings) as there:
        await there.until_streaming()
        assert len(there.daemon.runners.by_group) == 1
        await trio.sleep(60)
        there.order("backend_restart")
        assert not list(there.exchange.subscriptions)
        took = await there.until_streaming(within=5)
        assert there.wire.most <= 10
        print(f"200 subscriptions are back after {took:.2f} s")


async def test_thousands_of_mailboxes_are_subscribed_without_a_burst(
    autojump_clock: trio.testing.MockClock,
) -> None:
    settings = Settings(mailboxes=MANY, backends=10, heartbeat=300.0, network=Network(latency=0.05))
    async with world(settings) as there:
        took = await there.until_streaming(within=300)
        assert there.wire.most == 10
        assert there.subscribes(since=0) == MANY
        progress = [line["streaming"] for line in there.logged("listener.progress")]
        assert len(progress) >= took // 10 - 1
        assert progress == sorted(progress)
        assert progress[0] < MANY
        print(f"{MANY} stream after {took:.0f} s, 10 side by side, progress {progress}")
        await trio.sleep(60)
        started_at, lost = trio.current_time(), 0
        for backend in there.exchange.directory.backends[:2]:
            lost += len(there.exchange.subscriptions.tables[backend])
            there.order("backend_restart", backend=backend)
        took = await there.until_streaming(within=60)
        assert there.wire.most == 10
        assert there.subscribes(since=started_at) == lost, "nobody is subscribed twice"
        print(f"{lost} are back after {took:.0f} s")
