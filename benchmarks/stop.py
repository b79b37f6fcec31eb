"""How long an end in order takes in the midst of traffic, and whether the next start finds all: real processes.

`python benchmarks/stop.py [MAILBOXES [EVENTS]]`, 200 and 500 a second by default. Time counts from SIGTERM to the end
of the process; changes go on until then. After the next start, what the handler `file` wrote is held against the
ledger: `unseen` came and went while nobody listened; `repeated` is mostly how folders look, of which nobody knew
before the first comparison.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import datetime
from math import inf
from pathlib import Path

from restart import Run, simulated

from listener.demo.verdict import Gaps, Verdict, call_of, compare, read_ledger
from listener.event import MailboxEvent

SECONDS = 10.0  # of traffic before the end
TIMES = 3
PATIENCE = 120.0


def verdict(ledger: Path, output: Path) -> Verdict:
    """What of the ledger the handler has been told by now."""
    changes, _ = read_ledger(whole_lines(ledger))
    moments = {(change.id, change.change_key): change.time for change in changes if change.change_key}
    calls = []
    for line in map(json.loads, whole_lines(output)):
        event = MailboxEvent(type=line["type"], time=line["time"], **line["data"])
        told = datetime.fromisoformat(event.time).timestamp() + (not event.recovered)  # in whole seconds
        calls.append(call_of(event, moments.get((event.subject or "", event.change_key), told)))
    at_any_time = Gaps(without=((-inf, inf),))
    return compare(changes, calls, dict.fromkeys((change.mailbox for change in changes), at_any_time))


def whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []


def main(mailboxes: int, rate: float) -> None:
    """Prints each end, and in the end the verdict."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ledger, output = directory / "ledger.jsonl", directory / "deliveries.jsonl"
        with simulated(directory, mailboxes, "--ledger", str(ledger)) as there:
            ends = []
            run = Run(directory)
            for _ in range(TIMES):
                run.until(lambda: there.state()["mailboxes_streaming"] == mailboxes)
                there.rate(rate)
                time.sleep(SECONDS)
                started_at = time.monotonic()
                run.end()
                ends.append(time.monotonic() - started_at)
                there.rate(0)
                if run.process.returncode != 0:
                    raise SystemExit(f"it ended with {run.process.returncode}")
                run = Run(directory)
            told = ", ".join(f"{1000 * seconds:.0f} ms" for seconds in ends)
            print(f"{mailboxes} mailboxes, {rate:g} events/s: {told} from SIGTERM to the end")
            give_up = time.monotonic() + PATIENCE
            while (found := verdict(ledger, output)).lost and time.monotonic() < give_up:
                time.sleep(0.5)
            run.end()
        print(
            f"  {found.generated} changes, {found.lost} lost, {found.unseen} unseen, {found.duplicates} repeated"
        )
        if found.lost:
            raise SystemExit("something was lost")


if __name__ == "__main__":
    main(*([int(number) for number in sys.argv[1:]] or [200, 500]))
