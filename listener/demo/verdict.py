"""Comparison of the delivered events with the simulator's ledger of changes (pure).

The ledger has one line per change. A delivery matches a change if mailbox, kind, id, parent folder and change key are
equal. The first delivery matches the first such change, and so on. In addition, a recovered event reports a state of
its item or folder, which the change key identifies, or that it was deleted.

A change is lost if no delivery reports that state of the item or folder or a later one. A moved item stays the same
item under its new id. An item that was created and deleted within one gap leaves no trace in the mailbox: its changes
are unseen, not lost. Deleting a folder deletes its items.
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
    """Values by which a delivery matches a change. `kind` is a CloudEvents type, `id` that of an item or folder."""

    mailbox: str
    kind: str
    id: str
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
    def id(self) -> str:
        """The id of the item or folder."""
        return self.item_id or self.folder_id or ""

    @property
    def key(self) -> Key:
        subject = "item" if self.item_id is not None else "folder"
        kind = f"exchange.{subject}.{_EVENT_TYPES.get(self.kind, self.kind)}"
        return Key(self.mailbox, kind, self.id, self.parent_folder_id, self.change_key)


class Call(NamedTuple):
    """A call of a handler, at `time` in Unix seconds, with an event of this key."""

    key: Key
    time: float
    recovered: bool = False


class Gaps(NamedTuple):
    """The intervals in which a mailbox had no working stream, and those of its resyncs; Unix seconds.

    A change made up to LATE seconds before the stream broke may have been in transit, unless the stream delivered a
    later change before.
    """

    without: Sequence[tuple[float, float]] = ()
    resyncs: Sequence[tuple[float, float]] = ()

    def hide(self, *changes: tuple[float, float]) -> bool:
        """Return whether the changes were made within one gap, that is, without a stream and without a resync between
        them. A gap lasts until a resync closes it.

        Each change is its time, and the time when a stream first delivered a later change of the mailbox.
        """
        not_streamed = all(
            any(since - (LATE if until < overtaken else 0) <= time <= until for since, until in self.without)
            for time, overtaken in changes
        )
        first, last = min(changes)[0], max(changes)[0]
        return not_streamed and not any(
            first < started_at and ended_at < last for started_at, ended_at in self.resyncs
        )


class Verdict(NamedTuple):
    """Result of the comparison. Latencies, in milliseconds, are of streamed events, and None if there were none."""

    generated: int
    delivered: int
    duplicates: int
    lost: int
    p50_ms: float | None
    p99_ms: float | None
    unseen: int = 0


class Comparison(NamedTuple):
    """Details of the comparison. `calls` are in the order of time; `streamed` has the changes that match streamed
    calls, by the index of the call."""

    ledger: list[LedgerLine]
    calls: list[Call]
    lost: list[LedgerLine]
    unseen: list[LedgerLine]
    duplicates: int
    streamed: dict[int, LedgerLine]

    def verdict(self) -> Verdict:
        """Return the totals and the latencies."""
        latencies = sorted(
            1000 * (self.calls[number].time - line.time) for number, line in self.streamed.items()
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
    """Return the call of a handler with this event."""
    key = Key(event.mailbox, event.type, event.subject or "", event.parent_folder_id, event.change_key)
    return Call(key, time, event.recovered)


def compare(
    ledger: Iterable[LedgerLine], calls: Iterable[Call], gaps: Mapping[str, Gaps] | None = None
) -> Verdict:
    """Return the verdict on the calls of one handler. `gaps` are by mailbox."""
    return compare_in_detail(ledger, calls, gaps).verdict()


def compare_in_detail(
    ledger: Iterable[LedgerLine], calls: Iterable[Call], gaps: Mapping[str, Gaps] | None = None
) -> Comparison:
    """Return the lost and unseen changes, the number of duplicate calls and the streamed changes."""
    lines = sorted(ledger, key=lambda line: line.seq)
    calls = sorted(calls, key=lambda call: call.time)
    matches = _match(lines, calls)
    histories = _Histories(lines)
    duplicates = 0
    for number, call in enumerate(calls):
        line = matches.get(number)
        seqs = (None if line is None else line.seq, histories.recovered_seq(call))
        new = histories.report(call.key, max((seq for seq in seqs if seq is not None), default=None))
        duplicates += line is None and not new
    matched = {line.seq for line in matches.values()}
    missing = [line for line in lines if line.seq not in matched and not histories.is_reported(line)]
    streamed = {number: line for number, line in matches.items() if not calls[number].recovered}
    progress = _StreamProgress((line, calls[number].time) for number, line in streamed.items())
    unseen = []
    for line in missing:
        lifetime = histories.unreported_lifetime(line)
        mailbox_gaps = (gaps or {}).get(line.mailbox, Gaps())
        if lifetime is not None and mailbox_gaps.hide(
            *((change.time, progress.overtaken_at(change)) for change in lifetime)
        ):
            unseen.append(line)
    unseen_seqs = {line.seq for line in unseen}
    lost = [line for line in missing if line.seq not in unseen_seqs]
    return Comparison(lines, calls, lost, unseen, duplicates, streamed)


def _match(lines: list[LedgerLine], calls: list[Call]) -> dict[int, LedgerLine]:
    """Return the matching change of each call, by the index of the call."""
    unmatched: defaultdict[Key, deque[LedgerLine]] = defaultdict(deque)
    for line in lines:
        unmatched[line.key].append(line)
    return {
        number: unmatched[call.key].popleft()
        for number, call in enumerate(calls)
        if unmatched.get(call.key) and unmatched[call.key][0].time <= call.time
    }


_Id: TypeAlias = tuple[str, str]
"""A mailbox, and the id of an item or folder in it."""


class _Histories:
    """The changes of each item and folder, and the last change that was reported."""

    def __init__(self, lines: list[LedgerLine]) -> None:
        self._original: dict[_Id, _Id] = {}  # the first id of an item that was moved
        self._lines: defaultdict[_Id, list[LedgerLine]] = defaultdict(list)
        self._end: dict[_Id, LedgerLine] = {}
        self._reported: dict[_Id, int] = {}
        self._called: set[_Id] = set()
        for line in lines:
            id_ = line.mailbox, line.id
            self._lines[id_].append(line)
            if line.kind == "MovedEvent" and line.old_id not in (None, line.id):
                old = line.mailbox, line.old_id or ""
                self._original[id_] = self._original.get(old, old)
                self._end[old] = line
            elif line.kind == "DeletedEvent":
                self._end[id_] = line

    def report(self, key: Key, seq: int | None) -> bool:
        """Record that a call reported the state at `seq`. Return whether that state was new."""
        id_ = key.mailbox, key.id
        self._called.add(id_)
        original = self._original.get(id_, id_)
        if seq is None or seq <= self._reported.get(original, 0):
            return False
        self._reported[original] = seq
        return True

    def is_reported(self, line: LedgerLine) -> bool:
        """Return whether a call reported this state or a later one."""
        id_ = line.mailbox, line.id
        return line.seq <= self._reported.get(self._original.get(id_, id_), 0)

    def recovered_seq(self, call: Call) -> int | None:
        """Return the last change that a recovered event reports; None if the reported state never existed."""
        if not call.recovered:
            return None
        id_ = call.key.mailbox, call.key.id
        lines = [line for line in self._lines.get(id_, ()) if line.time <= call.time]
        if call.key.kind.endswith(".deleted"):
            end = self._end_of(id_)
            # The end of an item may be the deletion of its folder, which is later than the item's own changes.
            return (
                max(line.seq for line in (*lines, end)) if end is not None and end.time <= call.time else None
            )
        return max((line.seq for line in lines if line.change_key == call.key.change_key), default=None)

    def _end_of(self, id_: _Id) -> LedgerLine | None:
        """Return the change after which this id no longer existed: its own, or the deletion of its folder."""
        if (end := self._end.get(id_)) is not None:
            return end
        lines = self._lines.get(id_)
        if not lines or lines[-1].item_id is None:
            return None
        return self._end.get((id_[0], lines[-1].parent_folder_id or ""))

    def unreported_lifetime(self, line: LedgerLine) -> tuple[LedgerLine, LedgerLine] | None:
        """Return the first and the last change of an id that was created and deleted; None if it was not, or if any
        call was about it."""
        id_ = line.mailbox, line.id
        first, end = self._lines[id_][0], self._end_of(id_)
        created = first.kind in _CREATING or (first.kind == "MovedEvent" and first.old_id != first.id)
        return None if id_ in self._called or not created or end is None else (first, end)


class _StreamProgress:
    """The streamed changes of each mailbox, and when they were delivered."""

    def __init__(self, delivered: Iterable[tuple[LedgerLine, float]]) -> None:
        # From the last change to the first: the earliest delivery of this or a later change.
        self._seqs: defaultdict[str, list[int]] = defaultdict(list)
        self._earliest: defaultdict[str, list[float]] = defaultdict(list)
        for line, time in sorted(delivered, key=lambda each: each[0].seq, reverse=True):
            earliest = self._earliest[line.mailbox]
            self._seqs[line.mailbox].append(-line.seq)
            earliest.append(min(time, earliest[-1]) if earliest else time)

    def overtaken_at(self, line: LedgerLine) -> float:
        """Return when a stream first delivered a later change of the mailbox; infinity if never."""
        later = bisect_left(self._seqs[line.mailbox], -line.seq)
        return self._earliest[line.mailbox][later - 1] if later else inf


def read_ledger(lines: Iterable[bytes]) -> tuple[list[LedgerLine], int]:
    """Return the changes in a ledger, and the number of faults in it."""
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


# Maximum seconds that a change may have been in transit when its stream broke.
LATE = 15.0

_DECODE = msgspec.json.Decoder(LedgerLine).decode
_CREATING = frozenset(("CreatedEvent", "CopiedEvent", "NewMailEvent"))
_EVENT_TYPES = {
    "CreatedEvent": "created",
    "ModifiedEvent": "modified",
    "DeletedEvent": "deleted",
    "MovedEvent": "moved",
    "CopiedEvent": "copied",
    "NewMailEvent": "new_mail",
    "FreeBusyChangedEvent": "free_busy_changed",
}
