"""What is proved elsewhere with real sockets holds here too: otherwise this world would prove nothing."""

import trio
import trio.testing

from listener.simulator.settings import Settings
from tests.virtual.world import world


async def test_all_stream_and_events_arrive(autojump_clock: trio.testing.MockClock) -> None:
    async with world(Settings(mailboxes=30), shutdown={"unsubscribe": True}) as there:
        await there.until_streaming()
        made, started_at = there.touch(), trio.current_time()
        await trio.sleep(0.1)
        assert made == set(there.notes.came)
        assert max(there.notes.came.values()) - started_at < 0.05
        assert len(there.daemon.runners.by_group) == 3
    assert len(list(there.exchange.subscriptions)) == 0
    assert there.wire.open == there.wire.under_way == 0
