"""The virtual environment behaves like real sockets do; otherwise its tests would prove nothing."""

import trio
import trio.testing

from listener.simulator.settings import Settings
from tests.virtual.world import open_world


async def test_all_stream_and_events_arrive(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world(Settings(mailboxes=30), shutdown={"unsubscribe": True}) as world:
        await world.until_streaming()
        made, started_at = world.change_each(), trio.current_time()
        await trio.sleep(0.1)
        assert made == set(world.recorder.received_at)
        assert max(world.recorder.received_at.values()) - started_at < 0.05
        assert len(world.daemon.runners.by_group) == 3
    assert len(list(world.exchange.subscriptions)) == 0
    assert world.wire.open == world.wire.under_way == 0
