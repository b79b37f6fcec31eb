"""The log volume of a quiet day: a virtual day of a small daemon, scaled by the subject of each line."""

import json
from typing import Any

import pytest
import trio
import trio.testing

from listener.simulator.settings import Settings
from tests.virtual.world import World, open_world

DAY = 86400.0
AIM = 5_000_000  # bytes a day for a thousand mailboxes
MAILBOXES = 1000


def size(line: dict[str, Any]) -> int:
    """Return the bytes of a line as JSON; 0 below level info."""
    if line["log_level"] == "debug":
        return 0
    shown = {"time": "2026-03-01T12:00:00.123Z", "level": line["log_level"]}
    shown |= {key: value for key, value in line.items() if key != "log_level"}
    return len(json.dumps(shown, separators=(",", ":"), ensure_ascii=False).encode()) + 1


def scaled(world: World, lines: list[dict[str, Any]], group_size: int) -> float:
    """Return the bytes for a thousand mailboxes in groups of this size.

    Lines about a mailbox count for each mailbox, lines about a group for each group.
    """
    mailboxes, groups = len(world.mailboxes), len(world.daemon.runners.by_group)
    total = 0.0
    for line in lines:
        times = 1.0
        if "mailbox" in line:
            times = MAILBOXES / mailboxes
        elif "group" in line:
            times = MAILBOXES / group_size / groups
        total += times * size(line)
    return total


@pytest.mark.parametrize("group_size", [200, 1])
async def test_log_volume_of_a_quiet_day_with_a_thousand_mailboxes(
    autojump_clock: trio.testing.MockClock, group_size: int
) -> None:
    settings = Settings(mailboxes=4, backends=2, seed=1)
    async with open_world(settings, affinity={"group_size": group_size}) as world:
        await world.until_streaming()
        await trio.sleep(60)
        started_at = len(world.log)
        await trio.sleep(DAY)
        lines = world.log[started_at:]
        start, day = scaled(world, world.log[:started_at], group_size), scaled(world, lines, group_size)
        print(f"groups of {group_size}: {start / 1e6:.2f} MB at the start, {day / 1e6:.2f} MB a day")
        assert {line["log_level"] for line in lines} <= {"debug", "info"}
        assert start + day < AIM
