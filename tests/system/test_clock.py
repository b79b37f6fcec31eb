"""The system clock is set back while the daemon runs (simulated with libfaketime)."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.system import forked
from tests.system.ledger import compare_with_ledger, event_of
from tests.system.processes import Listen, Start, json_lines, until

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed (Debian: faketime)")
def test_no_event_is_lost_when_the_clock_is_set_back_an_hour(
    simulator: Start, listen: Listen, tmp_path: Path
) -> None:
    ledger, output, clock = (tmp_path / name for name in ("ledger.jsonl", "deliveries.jsonl", "clock"))
    environment = {
        "LD_PRELOAD": str(LIBRARIES[-1]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # only the wall clock changes, as when an operator sets it
    }
    clock.write_text("+0\n")
    exchange = simulator("--ledger", str(ledger), "--backends", "1")
    exchange.append_config("\n[backoff]\nfirst = 0.05\ncap = 0.2\n")
    daemon = listen(exchange, **environment)
    exchange.until_streaming(4)
    listening = time.monotonic()

    def check_events_arrive() -> None:
        for mailbox in exchange.mailboxes:
            exchange.create_events(mailbox, count=5)
        until(lambda: compare_with_ledger(ledger, output).lost == 0, "every event")

    check_events_arrive()
    before = daemon.log[-1]["time"]
    clock.write_text("-3600\n")
    check_events_arrive()
    assert compare_with_ledger(ledger, output).duplicates == 0
    delivered = exchange.deliveries
    assert len({event["id"] for event in delivered}) == len(delivered)
    for mailbox in exchange.mailboxes:
        lines = [line for line in json_lines(ledger) if line["mailbox"] == mailbox]
        made = [line.get("item_id") or line["folder_id"] for line in lines]
        assert [event["subject"] for event in delivered if event["data"]["mailbox"] == mailbox] == made

    # Catch-up cannot detect changes within the second of the first Subscribe.
    until(lambda: time.monotonic() > listening + 1.0, "the next second")
    # A gap whose start lies in the future of the new clock.
    exchange.inject_fault(kind="backend_restart")
    for mailbox in exchange.mailboxes:
        exchange.create_events(mailbox)
    exchange.until_streaming(4)
    check_events_arrive()
    assert daemon.log[-1]["time"] < before
    assert compare_with_ledger(ledger, output).unseen == 0
    assert [event_of(line) for line in exchange.deliveries if line["data"].get("recovered")]

    # Events that were journaled under the old clock lie in the future of the new one. Replay includes them.
    count = len(exchange.deliveries)
    replay = forked.run(
        [
            *(sys.executable, "-m", "listener", "replay", "--config", str(exchange.config)),
            *("--handler", "deliveries", "--since", "10m"),
        ],
        env={**os.environ, **environment},
        check=False,
    )
    assert replay.returncode == 0
    until(lambda: len(exchange.deliveries) >= 2 * count, "the replayed events")
    assert daemon.stop() == 0
