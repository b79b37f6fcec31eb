"""What handlers wrote down, held against the simulator's ledger."""

from collections.abc import Mapping
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

from listener.demo.verdict import Gaps, Verdict, call_of, compare, read_ledger
from listener.event import MailboxEvent
from tests.system.processes import json_lines


def event_of(line: dict[str, Any]) -> MailboxEvent:
    """The event of a CloudEvent."""
    return MailboxEvent(type=line["type"], time=line["time"], **line["data"])


def judge(ledger: Path, output: Path, gaps: Mapping[str, Gaps] | None = None) -> Verdict:
    """What of the ledger a handler has been told. In these gaps a thing may go unseen, by mailbox; at any time, if
    nothing is said of them.

    When the handler was called is not written down. An event tells nothing later than the state that its change key
    stands for, or, without one, than its own time, which servers tell in whole seconds.
    """
    with ledger.open("rb") as file:
        changes, _ = read_ledger(line for line in file if line.endswith(b"\n"))
    moments = {(change.id, change.change_key): change.time for change in changes if change.change_key}

    def moment(event: MailboxEvent) -> float:
        stated = moments.get((event.subject or "", event.change_key or ""))
        told = datetime.fromisoformat(event.time).timestamp()
        return stated or (told if event.recovered else told + 1)

    events = [event_of(line) for line in json_lines(output)]
    calls = [
        call_of(event, moment(event)) for event in events if not event.type.startswith("exchange.listener.")
    ]
    if gaps is None:
        gaps = dict.fromkeys((change.mailbox for change in changes), Gaps(without=((-inf, inf),)))
    return compare(changes, calls, gaps)
