"""What the daemon has in memory does not grow with what passes through it."""

import pytest
import trio
import trio.testing

from listener.simulator.settings import Settings
from tests.virtual.world import world


@pytest.mark.parametrize("mode", ["signal", "off"])
async def test_events_are_not_remembered_without_comparisons(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with world(Settings(mailboxes=3), traffic=5.0, catch_up={"mode": mode}) as running:
        await trio.sleep(20)
        assert running.daemon.ingest.events
        assert not running.daemon.ingest.history._waiting
