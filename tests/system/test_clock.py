"""The clock of the machine is set back while the daemon runs (libfaketime gives it a clock of its own)."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.system import forked
from tests.system.ledger import compare_with_ledger, event_of
from tests.system.processes import Listen, Start, json_lines, until

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.skipif(not LIBRARIES, reason="there is no libfaketime (Debian: faketime)")
def test_a_clock_that_is_set_back_an_hour_loses_nothing(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output, clock = (tmp_path / name for name in ("ledger.jsonl", "deliveries.jsonl", "clock"))
    environment = {
        "LD_PRELOAD": str(LIBRARIES[-1]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # only the time of day is set, as by an operator
    }
    clock.write_text("+0\n")
    there = simulator("--ledger", str(ledger), "--backends", "1")
    there.append_config("\n[backoff]\nfirst = 0.05\ncap = 0.2\n")
    daemon = listen(there, **environment)
    there.until_streaming(4)
    listening = time.monotonic()

    def events_arrive() -> None:
        for mailbox in there.mailboxes:
            there.create_events(mailbox, count=5)
        until(lambda: compare_with_ledger(ledger, output).lost == 0, "every event")

    events_arrive()
    before = daemon.log[-1]["time"]
    clock.write_text("-3600\n")
    events_arrive()
    assert compare_with_ledger(ledger, output).duplicates == 0
    told = there.deliveries
    assert len({event["id"] for event in told}) == len(told)
    for mailbox in there.mailboxes:
        lines = [line for line in json_lines(ledger) if line["mailbox"] == mailbox]
        made = [line.get("item_id") or line["folder_id"] for line in lines]
        assert [event["subject"] for event in told if event["data"]["mailbox"] == mailbox] == made

    # Of the second of the first Subscribe a comparison cannot tell what is new.
    until(lambda: time.monotonic() > listening + 1.0, "the next second")
    # A gap that began before the clock was set back.
    there.inject_fault(kind="backend_restart")
    for mailbox in there.mailboxes:
        there.create_events(mailbox)
    there.until_streaming(4)
    events_arrive()
    assert daemon.log[-1]["time"] < before
    assert compare_with_ledger(ledger, output).unseen == 0
    assert [event_of(line) for line in there.deliveries if line["data"].get("recovered")]

    # What was journaled under the old clock lies in the future of the new one, and is not forgotten.
    count = len(there.deliveries)
    replay = forked.run(
        [
            *(sys.executable, "-m", "listener", "replay", "--config", str(there.config)),
            *("--handler", "deliveries", "--since", "10m"),
        ],
        env={**os.environ, **environment},
        check=False,
    )
    assert replay.returncode == 0
    until(lambda: len(there.deliveries) >= 2 * count, "everything once more")
    assert daemon.stop() == 0
