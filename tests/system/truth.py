"""What handlers wrote down, held against the simulator's ledger."""

from collections.abc import Iterable
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


def judge(ledger: Path, output: Path, mailboxes: Iterable[str] | None = None) -> Verdict:
    """What of the ledger a handler has been told, with gaps in which a thing may go unseen. Of these mailboxes, or
    of all.

    When the handler was called is not written down. An event tells nothing later than the state that its change key
    stands for, or, without one, than its own time, which servers tell in whole seconds.
    """
    wanted = None if mailboxes is None else set(mailboxes)
    with ledger.open("rb") as file:
        changes, _ = read_ledger(line for line in file if line.endswith(b"\n"))
    changes = [change for change in changes if wanted is None or change.mailbox in wanted]
    moments = {(change.thing, change.change_key): change.time for change in changes if change.change_key}

    def moment(event: MailboxEvent) -> float:
        stated = moments.get((event.subject or "", event.change_key))
        told = datetime.fromisoformat(event.time).timestamp()
        return stated or (told if event.recovered else told + 1)

    events = [event_of(line) for line in json_lines(output)]
    calls = [
        call_of(event, moment(event)) for event in events if not event.type.startswith("exchange.listener.")
    ]
    at_any_time = Gaps(without=((-inf, inf),))
    return compare(changes, calls, dict.fromkeys((change.mailbox for change in changes), at_any_time))
