"""Hours of faults of all kinds: afterwards all mailboxes stream, and no task or connection is left over.

EWS_LISTENER_HOURS=24 runs a day, with thousands of faults.
"""

import os
from collections import Counter

import pytest
import trio
import trio.testing

from listener.simulator.fault_plans import PROFILES, Plan
from listener.simulator.faults import Padding
from listener.simulator.settings import Settings
from tests.virtual.world import open_world

HOUR = 3600.0
HOURS = float(os.environ.get("EWS_LISTENER_HOURS", "5"))
MAILBOXES = 9
# The profile's rates are for minutes.
SHARE = 1 / 40
KINDS_MADE = {entry.fault.kind for entry in PROFILES["heavy"]}


def spread(seconds: float) -> Plan:
    """Return the heavy profile, spread over this time."""
    return tuple(
        entry._replace(
            fault=Padding(megabytes=17.0) if isinstance(entry.fault, Padding) else entry.fault,
            per_minute=entry.per_minute * SHARE,
            until=seconds,
        )
        for entry in PROFILES["heavy"]
    )


@pytest.mark.parametrize("seed", [1])
async def test_hours_of_faults(autojump_clock: trio.testing.MockClock, seed: int) -> None:
    settings = Settings(mailboxes=MAILBOXES, backends=3, seed=seed, heartbeat=30.0)
    trouble = (HOURS - 1) * HOUR
    async with open_world(settings, traffic=0.02) as world:
        await world.until_streaming()
        tasks = trio.lowlevel.current_statistics().tasks_living
        world.exchange.fault_scheduler.start_plan(spread(trouble), 1_800_000_000.0 + trio.current_time())
        await trio.sleep(trouble)
        took = await world.until_streaming(within=60)
        faults = world.exchange.fault_scheduler.made
        assert faults.total() >= 85 * (HOURS - 1)
        assert set(faults) == KINDS_MADE
        await trio.sleep(1800)
        assert world.streaming == MAILBOXES
        made = world.change_each()
        await trio.sleep(1)
        assert made <= world.recorder.received_at.keys()
        streams = len(world.exchange.streams)
        groups = len(world.daemon.runners.by_group)
        assert streams == groups == world.wire.open
        # A group has one task, and its stream another. Leaks of thousands of faults would leave more than two.
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + 2 * (groups - 3) + 2
        assert not world.logged("group.crashed")
        log_counts = Counter(line["event"] for line in world.log)
        assert world.wire.most <= 10
        print(
            f"{faults.total()} faults, all back after {took:.1f} s, {groups} groups, {log_counts.most_common(12)}"
        )
    assert world.wire.open == world.wire.under_way == 0
    assert world.log[-1]["event"] == "listener.stopped"
