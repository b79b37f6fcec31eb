"""Holds what was delivered against what happened. Pure.

The ledger is the truth: one line a change. A change and a delivery belong together when mailbox, kind, thing and
parent folder are the same; the first delivery belongs to the first such change, and so on. A recovered event belongs
to no single change: it tells the state in which the thing was when it was found.

A change is lost if no delivery about that thing tells its state or a later one. A thing that was moved stays the same
thing, under its new id. A thing that came and went while a gap stood open leaves no trace that anyone could find: it
is unseen, not lost.
"""

from collections import defaultdict, deque
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
    change_key: str | None = None


class LedgerLine(msgspec.Struct):
    """One line of the simulator's ledger; `time` is in Unix seconds."""

    seq: int
    time: float
    kind: str
    mailbox: str = ""
    old_id: str | None = None
    item_id: str | None = None
    folder_id: str | None = None
    parent_folder_id: str | None = None
    change_key: str | None = None

    @property
    def key(self) -> Key:
        what = "item" if self.item_id is not None else "folder"
        kind = f"exchange.{what}.{_TYPE_OF.get(self.kind, self.kind)}"
        thing = self.item_id or self.folder_id or ""
        return Key(self.mailbox, kind, thing, self.parent_folder_id, self.change_key)


class Call(NamedTuple):
    """A handler was called, at `time` in Unix seconds, with an event of this key."""

    key: Key
    time: float
    recovered: bool = False


class Verdict(NamedTuple):
    """How the deliveries compare with the ledger. Latencies, in milliseconds, are of events that a stream told, and
    None if there were none."""

    generated: int
    delivered: int
    duplicates: int
    lost: int
    p50_ms: float | None
    p99_ms: float | None
    unseen: int = 0


def call_of(event: MailboxEvent, time: float) -> Call:
    """The call of a handler with this event."""
    key = Key(event.mailbox, event.type, event.subject or "", event.parent_folder_id, event.change_key)
    return Call(key, time, event.recovered)


def compare(ledger: Iterable[LedgerLine], calls: Iterable[Call], *, gaps: bool = False) -> Verdict:
    """The verdict on the calls of one handler. `gaps`: there were times in which no stream was open."""
    lines = sorted(ledger, key=lambda line: line.seq)
    calls = sorted(calls, key=lambda call: call.time)
    told_by = _matched(lines, calls)
    latencies = sorted(1000 * (calls[number].time - line.time) for number, line in told_by.items())
    things = _Things(lines)
    duplicates = 0
    for number, call in enumerate(calls):
        if (line := told_by.get(number)) is not None:
            things.tell(line.key, line.seq)
        elif not (call.recovered and things.tell(call.key, things.last_seq(call.key, call.time))):
            duplicates += 1
    matched = {line.seq for line in told_by.values()}
    lost = unseen = 0
    for line in lines:
        if line.seq not in matched and not things.told(line):
            if gaps and things.left_no_trace(line):
                unseen += 1
            else:
                lost += 1
    return Verdict(
        generated=len(lines),
        delivered=len(calls),
        duplicates=duplicates,
        lost=lost,
        p50_ms=_percentile(latencies, 50),
        p99_ms=_percentile(latencies, 99),
        unseen=unseen,
    )


def _matched(lines: list[LedgerLine], calls: list[Call]) -> dict[int, LedgerLine]:
    """Which line each streamed call tells of, by the number of the call."""
    waiting: defaultdict[Key, deque[LedgerLine]] = defaultdict(deque)
    for line in lines:
        waiting[line.key].append(line)
    return {
        number: waiting[call.key].popleft()
        for number, call in enumerate(calls)
        if not call.recovered and waiting.get(call.key)
    }


class _Things:
    """Items and folders, each with its changes and how far these have been told."""

    def __init__(self, lines: list[LedgerLine]) -> None:
        self._root: dict[tuple[str, str], tuple[str, str]] = {}
        self._lines: defaultdict[tuple[str, str], list[LedgerLine]] = defaultdict(list)
        self._told: dict[tuple[str, str], int] = {}
        for line in lines:
            thing = line.mailbox, line.key.thing
            if line.kind == "MovedEvent" and line.old_id is not None:
                self._root[thing] = self._of(line.mailbox, line.old_id)
            self._lines[self._of(*thing)].append(line)

    def _of(self, mailbox: str, thing: str) -> tuple[str, str]:
        return self._root.get((mailbox, thing), (mailbox, thing))

    def tell(self, key: Key, seq: int | None) -> bool:
        """Takes note that all up to `seq` has been told of the thing; whether that was new."""
        root = self._of(key.mailbox, key.thing)
        known = self._told.get(root, 0)
        if seq is None or seq <= known:
            return False
        self._told[root] = seq
        return True

    def told(self, line: LedgerLine) -> bool:
        return line.seq <= self._told.get(self._of(line.mailbox, line.key.thing), 0)

    def last_seq(self, key: Key, time: float) -> int | None:
        """The last change of the thing until then."""
        lines = self._lines.get(self._of(key.mailbox, key.thing), ())
        return max((line.seq for line in lines if line.time <= time), default=None)

    def left_no_trace(self, line: LedgerLine) -> bool:
        """Whether the thing came and went, and nothing of it was ever told."""
        root = self._of(line.mailbox, line.key.thing)
        lines = self._lines[root]
        came = lines[0].kind in ("CreatedEvent", "CopiedEvent", "NewMailEvent")
        return root not in self._told and came and lines[-1].kind == "DeletedEvent"


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
