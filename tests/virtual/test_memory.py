"""The daemon's memory does not grow with the number of events."""

import pytest
import trio
import trio.testing

from listener.simulator.settings import Settings
from tests.virtual.world import open_world


@pytest.mark.parametrize("mode", ["signal", "off"])
async def test_events_are_not_remembered_without_comparisons(
    autojump_clock: trio.testing.MockClock, mode: str
) -> None:
    async with open_world(Settings(mailboxes=3), traffic=5.0, catch_up={"mode": mode}) as world:
        await trio.sleep(20)
        assert world.daemon.ingest.events
        assert not world.daemon.ingest.history._waiting
