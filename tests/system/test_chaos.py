"""Random faults of all kinds at once, with real processes; afterwards the daemon recovers completely.

EWS_LISTENER_CHAOS_SECONDS and EWS_LISTENER_CHAOS_SEEDS extend the run.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from listener.exchange.network import MAX_IDLE
from tests.system.processes import Listener, Simulator, until

SECONDS = float(os.environ.get("EWS_LISTENER_CHAOS_SECONDS", "8"))
SEEDS = range(1, 1 + int(os.environ.get("EWS_LISTENER_CHAOS_SEEDS", "1")))
MAILBOXES = 60
# Measured over five seeds of one minute: 1.5 MB. The buffer of a large envelope (16 MB) may not be freed yet.
MARGIN = 20e6


class Resources(NamedTuple):
    """Resources of a process: memory in bytes, open file descriptors, and how many of those are sockets."""

    memory: int
    files: int
    sockets: int


def resources(process: int) -> Resources:
    status = Path(f"/proc/{process}/status").read_text()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    targets = [os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()]
    return Resources(
        int(kilobytes) * 1024, len(targets), sum(target.startswith("socket:") for target in targets)
    )


def until_events_arrive(exchange: Simulator, deadline: float) -> None:
    """Wait for an event of each mailbox. Create new ones every second, because a stream may turn out to be dead."""
    waiting = set(exchange.mailboxes)
    while waiting:
        assert time.monotonic() < deadline, f"no events of {len(waiting)} mailboxes: {sorted(waiting)[:5]}"
        made = {
            line.get("item_id") or line.get("folder_id"): mailbox
            for mailbox in sorted(waiting)
            for line in exchange.create_events(mailbox)
        }
        next_round = time.monotonic() + 1
        while waiting and time.monotonic() < next_round:
            waiting -= {made[event["subject"]] for event in exchange.deliveries if event["subject"] in made}
            time.sleep(0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_recovers_from_heavy_random_faults(
    simulator: Callable[..., Simulator], listen: Callable[..., Listener], seed: int
) -> None:
    exchange = simulator(
        *("--mailboxes", str(MAILBOXES), "--seed", str(seed), "--heartbeat", "1"),
    )
    daemon = listen(exchange)
    exchange.until_streaming(MAILBOXES)
    until_events_arrive(exchange, time.monotonic() + 10)
    before = resources(daemon.process.pid)

    exchange.inject_fault(profile="heavy")
    time.sleep(SECONDS)
    exchange.inject_fault(profile="none")
    started_at = time.monotonic()
    made = exchange.fault_status()["made"]
    until(lambda: exchange.state()["mailboxes_streaming"] == MAILBOXES, "every mailbox streaming", 60)
    until_events_arrive(exchange, started_at + 60)
    took = time.monotonic() - started_at

    state = exchange.state()
    groups = len(state["streams"])
    after = until(
        lambda: now if (now := resources(daemon.process.pid)).memory <= before.memory + MARGIN else None,
        lambda: f"memory: {before} -> {resources(daemon.process.pid)}",
    )
    print(
        f"seed {seed}: {sum(made.values())} faults of {len(made)} kinds in {SECONDS:g} s; all events arrive after "
        f"{took:.1f} s; {groups} streams; {before} -> {after}; mailboxes {state['mailboxes_streaming']}"
    )
    assert state["mailboxes_streaming"] == MAILBOXES
    assert after.files - after.sockets == before.files - before.sockets
    # Each group has its stream and some idle connections. tests/virtual/test_day.py finds every connection that is
    # never closed.
    assert after.sockets <= before.sockets + groups * (MAX_IDLE + 1) - 3

    assert daemon.process.poll() is None
    assert daemon.stop() == 0
    text = daemon.log_file.read_text()
    assert "Traceback" not in text
    assert not [line for line in daemon.log if line["level"] == "error"]
    assert daemon.log[-1]["event"] == "listener.stopped"
    assert exchange.state()["streams"] == []
