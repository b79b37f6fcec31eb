"""Compare the output of handlers with the simulator's ledger."""

from collections.abc import Mapping
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

from listener.demo.verdict import Gaps, Verdict, call_of, compare, read_ledger
from listener.event import MailboxEvent
from tests.system.processes import json_lines


def event_of(line: dict[str, Any]) -> MailboxEvent:
    """Convert a CloudEvent to a MailboxEvent."""
    return MailboxEvent(type=line["type"], time=line["time"], **line["data"])


def compare_with_ledger(ledger: Path, output: Path, gaps: Mapping[str, Gaps] | None = None) -> Verdict:
    """Compare the events in `output` with the ledger.

    `gaps` has, by mailbox, the times in which a change may stay unseen; without it, that is any time. The output does
    not record when the handler was called, so the time is derived from the event: the time of the state that its
    change key stands for, or else its own time, which servers report in whole seconds.
    """
    with ledger.open("rb") as file:
        changes, _ = read_ledger(line for line in file if line.endswith(b"\n"))
    change_times = {(change.id, change.change_key): change.time for change in changes if change.change_key}

    def call_time(event: MailboxEvent) -> float:
        known = change_times.get((event.subject or "", event.change_key or ""))
        reported = datetime.fromisoformat(event.time).timestamp()
        return known or (reported if event.recovered else reported + 1)

    events = [event_of(line) for line in json_lines(output)]
    calls = [
        call_of(event, call_time(event))
        for event in events
        if not event.type.startswith("exchange.listener.")
    ]
    if gaps is None:
        gaps = dict.fromkeys((change.mailbox for change in changes), Gaps(without=((-inf, inf),)))
    return compare(changes, calls, gaps)
