"""Holds what was delivered against what happened. Pure.

The ledger is the truth: one line a change. A change and a delivery belong together when mailbox, kind, thing, parent
folder and change key are the same; the first delivery belongs to the first such change, and so on. Beyond that, a
recovered event tells a state of the thing, which its change key names, or that the thing is gone.

A change is lost if no delivery about that thing tells its state or a later one. A thing that was moved stays the same
thing, under its new id. What came and went inside one gap leaves no trace that anyone could find: it is unseen, not
lost. What lies in a folder goes with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple, TypeAlias

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
    def thing(self) -> str:
        """The id of the item or folder."""
        return self.item_id or self.folder_id or ""

    @property
    def key(self) -> Key:
        what = "item" if self.item_id is not None else "folder"
        kind = f"exchange.{what}.{_TYPE_OF.get(self.kind, self.kind)}"
        return Key(self.mailbox, kind, self.thing, self.parent_folder_id, self.change_key)


class Call(NamedTuple):
    """A handler was called, at `time` in Unix seconds, with an event of this key."""

    key: Key
    time: float
    recovered: bool = False


class Gaps(NamedTuple):
    """From when to when a mailbox had no stream that was well, and was looked at; Unix seconds.

    What happened shortly before its stream broke may have been on its way, if it came after all that the stream told.
    """

    without: Sequence[tuple[float, float]] = ()
    looks: Sequence[tuple[float, float]] = ()

    def hide(self, *moments: tuple[float, float]) -> bool:
        """Whether there was no stream at any of these moments, and nobody looked in between: a gap that is not filled
        goes on. With each moment comes when a stream first told of something later."""
        unheard = all(
            any(
                since - (LATE if until < overtaken else 0) <= moment <= until for since, until in self.without
            )
            for moment, overtaken in moments
        )
        first, last = min(moments)[0], max(moments)[0]
        return unheard and not any(first < started_at and done < last for started_at, done in self.looks)


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


class Books(NamedTuple):
    """The ledger, held against the calls, which are in the order of time: `told_by` are the changes that streamed
    calls tell of, by the number of the call."""

    ledger: list[LedgerLine]
    calls: list[Call]
    lost: list[LedgerLine]
    unseen: list[LedgerLine]
    duplicates: int
    told_by: dict[int, LedgerLine]

    def verdict(self) -> Verdict:
        """What it comes to."""
        latencies = sorted(
            1000 * (self.calls[number].time - line.time) for number, line in self.told_by.items()
        )
        return Verdict(
            generated=len(self.ledger),
            delivered=len(self.calls),
            duplicates=self.duplicates,
            lost=len(self.lost),
            p50_ms=_percentile(latencies, 50),
            p99_ms=_percentile(latencies, 99),
            unseen=len(self.unseen),
        )


def call_of(event: MailboxEvent, time: float) -> Call:
    """The call of a handler with this event."""
    key = Key(event.mailbox, event.type, event.subject or "", event.parent_folder_id, event.change_key)
    return Call(key, time, event.recovered)


def compare(
    ledger: Iterable[LedgerLine], calls: Iterable[Call], gaps: Mapping[str, Gaps] | None = None
) -> Verdict:
    """The verdict on the calls of one handler; `gaps` by mailbox."""
    return balance(ledger, calls, gaps).verdict()


def balance(
    ledger: Iterable[LedgerLine], calls: Iterable[Call], gaps: Mapping[str, Gaps] | None = None
) -> Books:
    """Which changes nobody was told of, and which calls told nothing new."""
    lines = sorted(ledger, key=lambda line: line.seq)
    calls = sorted(calls, key=lambda call: call.time)
    matches = _matched(lines, calls)
    things = _Things(lines)
    duplicates = 0
    for number, call in enumerate(calls):
        line = matches.get(number)
        seqs = (None if line is None else line.seq, things.stated(call))
        new = things.tell(call.key, max((seq for seq in seqs if seq is not None), default=None))
        duplicates += line is None and not new
    matched = {line.seq for line in matches.values()}
    missing = [line for line in lines if line.seq not in matched and not things.told(line)]
    streamed = _Streamed(
        (line, calls[number].time) for number, line in matches.items() if not calls[number].recovered
    )
    unseen = []
    for line in missing:
        life = things.untold_life(line)
        hidden = (gaps or {}).get(line.mailbox, Gaps())
        if life is not None and hidden.hide(*((end.time, streamed.overtook(end)) for end in life)):
            unseen.append(line)
    passed = {line.seq for line in unseen}
    told_by = {number: line for number, line in matches.items() if not calls[number].recovered}
    lost = [line for line in missing if line.seq not in passed]
    return Books(lines, calls, lost, unseen, duplicates, told_by)


def _matched(lines: list[LedgerLine], calls: list[Call]) -> dict[int, LedgerLine]:
    """Which line each call belongs to, by the number of the call."""
    waiting: defaultdict[Key, deque[LedgerLine]] = defaultdict(deque)
    for line in lines:
        waiting[line.key].append(line)
    return {
        number: waiting[call.key].popleft()
        for number, call in enumerate(calls)
        if waiting.get(call.key) and waiting[call.key][0].time <= call.time
    }


_Id: TypeAlias = tuple[str, str]
"""A mailbox, and the id of an item or folder in it."""


class _Things:
    """Items and folders, each with its changes and how far these have been told."""

    def __init__(self, lines: list[LedgerLine]) -> None:
        self._root: dict[_Id, _Id] = {}
        self._lines: defaultdict[_Id, list[LedgerLine]] = defaultdict(list)
        self._end: dict[_Id, LedgerLine] = {}
        self._told: dict[_Id, int] = {}
        self._named: set[_Id] = set()
        for line in lines:
            id_ = line.mailbox, line.thing
            self._lines[id_].append(line)
            if line.kind == "MovedEvent" and line.old_id not in (None, line.thing):
                old = line.mailbox, line.old_id or ""
                self._root[id_] = self._root.get(old, old)
                self._end[old] = line
            elif line.kind == "DeletedEvent":
                self._end[id_] = line

    def tell(self, key: Key, seq: int | None) -> bool:
        """Takes note that all up to `seq` has been told of the thing; whether that was new."""
        id_ = key.mailbox, key.thing
        self._named.add(id_)
        root = self._root.get(id_, id_)
        if seq is None or seq <= self._told.get(root, 0):
            return False
        self._told[root] = seq
        return True

    def told(self, line: LedgerLine) -> bool:
        id_ = line.mailbox, line.thing
        return line.seq <= self._told.get(self._root.get(id_, id_), 0)

    def stated(self, call: Call) -> int | None:
        """The last change that a recovered event tells of; None if it tells nothing that was ever so."""
        if not call.recovered:
            return None
        id_ = call.key.mailbox, call.key.thing
        lines = [line for line in self._lines.get(id_, ()) if line.time <= call.time]
        if call.key.kind.endswith(".deleted"):
            end = self._end_of(id_)
            # What it went with may be a change of another thing: its folder.
            return (
                max(line.seq for line in (*lines, end)) if end is not None and end.time <= call.time else None
            )
        return max((line.seq for line in lines if line.change_key == call.key.change_key), default=None)

    def _end_of(self, id_: _Id) -> LedgerLine | None:
        """The change with which a thing went, under this id."""
        if (end := self._end.get(id_)) is not None:
            return end
        lines = self._lines.get(id_)
        if not lines or lines[-1].item_id is None:
            return None
        return self._end.get((id_[0], lines[-1].parent_folder_id or ""))

    def untold_life(self, line: LedgerLine) -> tuple[LedgerLine, LedgerLine] | None:
        """The changes with which a thing came and went, under this id; None if it did not, or was ever told of."""
        id_ = line.mailbox, line.thing
        first, end = self._lines[id_][0], self._end_of(id_)
        came = first.kind in _CAME or (first.kind == "MovedEvent" and first.old_id != first.thing)
        return None if id_ in self._named or not came or end is None else (first, end)


class _Streamed:
    """What streams told, mailbox by mailbox, and when."""

    def __init__(self, told: Iterable[tuple[LedgerLine, float]]) -> None:
        # From the last change to the first: when this or a later one was told first.
        self._seqs: defaultdict[str, list[int]] = defaultdict(list)
        self._first: defaultdict[str, list[float]] = defaultdict(list)
        for line, time in sorted(told, key=lambda each: each[0].seq, reverse=True):
            first = self._first[line.mailbox]
            self._seqs[line.mailbox].append(-line.seq)
            first.append(min(time, first[-1]) if first else time)

    def overtook(self, line: LedgerLine) -> float:
        """When a stream first told of something later in its mailbox."""
        later = bisect_left(self._seqs[line.mailbox], -line.seq)
        return self._first[line.mailbox][later - 1] if later else inf


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


# How long, in seconds, a change may have been on its way when its stream broke.
LATE = 15.0

_DECODE = msgspec.json.Decoder(LedgerLine).decode
_CAME = frozenset(("CreatedEvent", "CopiedEvent", "NewMailEvent"))
_TYPE_OF = {
    "CreatedEvent": "created",
    "ModifiedEvent": "modified",
    "DeletedEvent": "deleted",
    "MovedEvent": "moved",
    "CopiedEvent": "copied",
    "NewMailEvent": "new_mail",
    "FreeBusyChangedEvent": "free_busy_changed",
}
