"""Measure a regular stop during traffic, and verify that the next start finds all changes: real processes.

`python benchmarks/stop.py [MAILBOXES [EVENTS]]`, by default 200 mailboxes and 500 events per second. The time counts
from SIGTERM to the end of the process; changes continue until then. After the next start, the output of the handler
`file` is compared with the ledger. `unseen` items were created and deleted while the daemon was down. Most `repeated`
events report the state of folders, which the daemon does not know before its first comparison.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import datetime
from math import inf
from pathlib import Path

from restart import DaemonProcess, start_simulator

from listener.demo.verdict import Gaps, Verdict, call_of, compare, read_ledger
from listener.event import MailboxEvent

SECONDS = 10.0  # of traffic before each stop
TIMES = 3
TIMEOUT = 120.0  # seconds


def verdict(ledger: Path, output: Path) -> Verdict:
    """Compare the ledger with the events that the handler has written so far."""
    changes, _ = read_ledger(whole_lines(ledger))
    moments = {(change.id, change.change_key): change.time for change in changes if change.change_key}
    calls = []
    for line in map(json.loads, whole_lines(output)):
        event = MailboxEvent(type=line["type"], time=line["time"], **line["data"])
        received = datetime.fromisoformat(event.time).timestamp() + (not event.recovered)  # in whole seconds
        calls.append(call_of(event, moments.get((event.subject or "", event.change_key), received)))
    at_any_time = Gaps(without=((-inf, inf),))
    return compare(changes, calls, dict.fromkeys((change.mailbox for change in changes), at_any_time))


def whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []


def main(mailboxes: int, rate: float) -> None:
    """Print the duration of each stop and the result of the comparison."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ledger, output = directory / "ledger.jsonl", directory / "deliveries.jsonl"
        with start_simulator(directory, mailboxes, "--ledger", str(ledger)) as simulator:
            durations = []
            daemon = DaemonProcess(directory)
            for _ in range(TIMES):
                daemon.wait_until(lambda: simulator.state()["mailboxes_streaming"] == mailboxes)
                simulator.set_rate(rate)
                time.sleep(SECONDS)
                started_at = time.monotonic()
                daemon.stop()
                durations.append(time.monotonic() - started_at)
                simulator.set_rate(0)
                if daemon.process.returncode != 0:
                    raise SystemExit(f"the daemon ended with exit code {daemon.process.returncode}")
                daemon = DaemonProcess(directory)
            listed = ", ".join(f"{1000 * seconds:.0f} ms" for seconds in durations)
            print(f"{mailboxes} mailboxes, {rate:g} events/s: {listed} from SIGTERM to the end")
            deadline = time.monotonic() + TIMEOUT
            while (found := verdict(ledger, output)).lost and time.monotonic() < deadline:
                time.sleep(0.5)
            daemon.stop()
        print(
            f"  {found.generated} changes, {found.lost} lost, {found.unseen} unseen, {found.duplicates} repeated"
        )
        if found.lost:
            raise SystemExit("events were lost")


if __name__ == "__main__":
    main(*([int(number) for number in sys.argv[1:]] or [200, 500]))
