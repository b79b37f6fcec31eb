"""Heavy faults in the virtual world: whatever breaks, no change is lost."""

import pytest
import trio
import trio.testing

from listener.simulator.plans import PROFILES
from listener.simulator.settings import Settings
from tests.virtual.wire import clock
from tests.virtual.world import world


@pytest.mark.parametrize("seed", range(1))
async def test_heavy_faults_lose_no_event(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    settings = Settings(mailboxes=40, backends=3, seed=seed, heartbeat=5.0)
    async with world(settings, traffic=30.0, catch_up={"interval": "10s"}) as there:
        await there.until_streaming()
        there.exchange.chaos.begin(PROFILES["heavy"], clock())
        await trio.sleep(60)
        there.users.set_rate(0)
        there.exchange.chaos.stop()
        await there.until_streaming(within=120)
        await there.caught_up(within=300)
        books = there.books()
        assert there.exchange.chaos.made.total() >= 60
        assert len(there.lines) >= 1500
        assert books.lost == []
