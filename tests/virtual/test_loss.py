"""Heavy faults on a virtual clock: no change is lost."""

import pytest
import trio
import trio.testing

from listener.simulator.fault_plans import PROFILES
from listener.simulator.settings import Settings
from tests.virtual.wire import clock
from tests.virtual.world import open_world


@pytest.mark.parametrize("seed", range(1))
async def test_heavy_faults_lose_no_event(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    settings = Settings(mailboxes=40, backends=3, seed=seed, heartbeat=5.0)
    async with open_world(settings, traffic=30.0, catch_up={"interval": "10s"}) as world:
        await world.until_streaming()
        world.exchange.fault_scheduler.start_plan(PROFILES["heavy"], clock())
        await trio.sleep(60)
        world.users.set_rate(0)
        world.exchange.fault_scheduler.stop()
        await world.until_streaming(within=120)
        await world.caught_up(within=300)
        books = world.books()
        assert world.exchange.fault_scheduler.made.total() >= 60
        assert len(world.lines) >= 1500
        assert books.lost == []
