"""Holds what was delivered against what happened. Pure.

The ledger is the truth: one line a change. A change and a delivery belong together when mailbox, kind, thing and
parent folder are the same; the first delivery belongs to the first such change, and so on.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from listener.event import MailboxEvent


class Key(NamedTuple):
    """What a change in the ledger and a delivery have in common. `kind` is a CloudEvents type."""

    mailbox: str
    kind: str
    thing: str
    parent_folder_id: str | None


class LedgerLine(msgspec.Struct):
    """One line of the simulator's ledger; `time` is in Unix seconds."""

    seq: int
    time: float
    kind: str
    mailbox: str = ""
    item_id: str | None = None
    folder_id: str | None = None
    parent_folder_id: str | None = None

    @property
    def key(self) -> Key:
        what = "item" if self.item_id is not None else "folder"
        kind = f"exchange.{what}.{_TYPE_OF.get(self.kind, self.kind)}"
        return Key(self.mailbox, kind, self.item_id or self.folder_id or "", self.parent_folder_id)


class Verdict(NamedTuple):
    """How the deliveries compare with the ledger. Latencies, in milliseconds, are None if nothing was delivered."""

    generated: int
    delivered: int
    duplicates: int
    lost: int
    p50_ms: float | None
    p99_ms: float | None


def key_of(event: MailboxEvent) -> Key:
    """The key of a delivery."""
    return Key(event.mailbox, event.type, event.subject or "", event.parent_folder_id)


def compare(ledger: Iterable[LedgerLine], deliveries: Iterable[tuple[Key, float]]) -> Verdict:
    """The verdict on deliveries, each with the Unix time at which its handler was called."""
    changes: defaultdict[Key, list[float]] = defaultdict(list)
    for line in ledger:
        changes[line.key].append(line.time)
    generated = sum(map(len, changes.values()))
    calls: defaultdict[Key, list[float]] = defaultdict(list)
    for key, time in deliveries:
        calls[key].append(time)
    delivered = sum(map(len, calls.values()))
    matched = sum(min(len(times), len(calls.get(key, ()))) for key, times in changes.items())
    latencies = sorted(
        1000 * (called - changed)
        for key, times in changes.items()
        for changed, called in zip(sorted(times), sorted(calls.get(key, ())), strict=False)
    )
    return Verdict(
        generated=generated,
        delivered=delivered,
        duplicates=delivered - matched,
        lost=generated - matched,
        p50_ms=_percentile(latencies, 50),
        p99_ms=_percentile(latencies, 99),
    )


def read_ledger(lines: Iterable[bytes]) -> tuple[list[LedgerLine], int]:
    """The changes of a ledger, and the number of faults that it tells of."""
    changes, faults = [], 0
    for line in lines:
        entry = _DECODE(line)
        if entry.kind == "fault":
            faults += 1
        else:
            changes.append(entry)
    return changes, faults


def _percentile(ordered: list[float], percent: int) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)


_DECODE = msgspec.json.Decoder(LedgerLine).decode
_TYPE_OF = {
    "CreatedEvent": "created",
    "ModifiedEvent": "modified",
    "DeletedEvent": "deleted",
    "MovedEvent": "moved",
    "CopiedEvent": "copied",
    "NewMailEvent": "new_mail",
    "FreeBusyChangedEvent": "free_busy_changed",
}
