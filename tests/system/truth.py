"""What handlers wrote down, held against the simulator's ledger."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from listener.demo.verdict import Call, Verdict, call_of, compare, read_ledger
from listener.event import MailboxEvent
from tests.system.processes import json_lines


def event_of(line: dict[str, Any]) -> MailboxEvent:
    """The event of a CloudEvent."""
    return MailboxEvent(type=line["type"], time=line["time"], **line["data"])


def call(event: MailboxEvent) -> Call:
    """When the handler was called is not written down; an event tells nothing that is later than its own time."""
    return call_of(event, datetime.fromisoformat(event.time).timestamp())


def judge(ledger: Path, output: Path, mailboxes: Iterable[str] | None = None) -> Verdict:
    """What of the ledger a handler has not been told, in an hour full of gaps. Of these mailboxes, or of all."""
    wanted = None if mailboxes is None else set(mailboxes)
    with ledger.open("rb") as file:
        changes, _ = read_ledger(line for line in file if line.endswith(b"\n"))
    events = map(event_of, json_lines(output))
    return compare(
        [change for change in changes if wanted is None or change.mailbox in wanted],
        [call(event) for event in events if not event.type.startswith("exchange.listener.")],
        gaps=True,
    )
