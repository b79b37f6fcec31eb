"""Hours in the life of the daemon: faults of all kinds, and at the end everything is as it was.

EWS_LISTENER_HOURS=24 makes it a day, with thousands of them.
"""

import os
from collections import Counter

import pytest
import trio
import trio.testing

from listener.simulator.fault_plans import PROFILES, Plan
from listener.simulator.faults import Padding
from listener.simulator.settings import Settings
from tests.virtual.world import world

HOUR = 3600.0
HOURS = float(os.environ.get("EWS_LISTENER_HOURS", "5"))
MAILBOXES = 9
# The profile is for minutes.
SHARE = 1 / 40
KINDS_MADE = {entry.fault.kind for entry in PROFILES["heavy"]}


def spread(seconds: float) -> Plan:
    """The heavy profile, spread over a day."""
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
    async with world(settings, traffic=0.02) as there:
        await there.until_streaming()
        tasks = trio.lowlevel.current_statistics().tasks_living
        there.exchange.fault_scheduler.start_plan(spread(trouble), 1_800_000_000.0 + trio.current_time())
        await trio.sleep(trouble)
        took = await there.until_streaming(within=60)
        faults = there.exchange.fault_scheduler.made
        assert faults.total() >= 85 * (HOURS - 1)
        assert set(faults) == KINDS_MADE
        await trio.sleep(1800)
        assert there.streaming == MAILBOXES
        made = there.touch()
        await trio.sleep(1)
        assert made <= there.notes.came.keys()
        streams = len(there.exchange.streams)
        groups = len(there.daemon.runners.by_group)
        assert streams == groups == there.wire.open
        # A group is a task and its stream is one; thousands of faults would leave more than two.
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + 2 * (groups - 3) + 2
        assert not there.logged("group.crashed")
        said = Counter(line["event"] for line in there.log)
        assert there.wire.most <= 10
        print(
            f"{faults.total()} faults, all back after {took:.1f} s, {groups} groups, {said.most_common(12)}"
        )
    assert there.wire.open == there.wire.under_way == 0
    assert there.log[-1]["event"] == "listener.stopped"
