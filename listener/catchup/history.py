"""The events of each mailbox since it was last compared. Pure.

The rules:

1. Events of streams are remembered as facts from the last comparison on. Earlier changes are part of the snapshot.
2. A thing that appeared, was reported and was deleted again is in no difference between snapshot and mailbox: its id
   is remembered, and the comparison queries it.
3. If the server has lost a SyncState, only the listener's own memory shows deletions. For that, the ids of the latest
   reported items are remembered, by folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from listener.event import MailboxEvent

FOLDERS = ""
"""Stands for the folder whose items are the folders."""


class MailboxHistory:
    """Facts about the events of one mailbox, and the ids of things that they reported as present.

    Facts are stored as hashes: about 70 bytes each, one to four an event. `incomplete`: some facts were dropped
    because there were too many, or were never loaded.
    """

    def __init__(self) -> None:
        # Facts from before the last comparison, until the one that runs now, and since that one began.
        self._earlier: set[int] = set()
        self._before: set[int] = set()
        self._since: set[int] = set()
        self._ids: dict[str, set[str]] = {}
        self._id_count = 0
        self.incomplete = False
        self._cleared = False
        self.clock = 0
        """Counts the events that were noted or announced."""
        # By ("gone" or "moved", id): the clock at the latest such event during the comparison that runs now.
        self._latest: dict[tuple[str, str | None], int] | None = None

    def __len__(self) -> int:
        return len(self._earlier) + len(self._before) + len(self._since) + self._id_count

    def has(self, *fact: object) -> bool:
        """Return whether this fact was noted since the last comparison. facts() lists them."""
        key = hash(fact)
        return key in self._since or key in self._before

    def had_earlier(self, *fact: object) -> bool:
        """Return whether this fact was noted before the last comparison, as far as it is still remembered."""
        return hash(fact) in self._earlier

    def reported_since(self, clock: int, word: str, id_: str | None) -> bool:
        """Return whether an event reported this thing as "gone" or "moved" after the clock had this value.

        Only events during the comparison that runs now count. They are newer than an answer whose request was sent
        when the clock had this value.
        """
        return self._latest is not None and self._latest.get((word, id_), -1) > clock

    def known_ids(self, folder: str = FOLDERS) -> set[str]:
        """Return the items of a folder, or the folders, that an event reported as present and that are not yet marked
        as compared."""
        return set(self._ids.get(folder, ()))

    def mark_compared(self, ids: Iterable[str], folder: str = FOLDERS) -> None:
        """Drop these ids: they are in the folder's snapshot now, or are known to be deleted from it."""
        known = self._ids.get(folder)
        if known is not None:
            self._id_count -= len(known)
            known.difference_update(ids)
            self._id_count += len(known)
            if not known:
                del self._ids[folder]

    def announce(self, event: MailboxEvent) -> None:
        """Note that the event is being written to the journal: reported_since() knows a deletion or move from now."""
        self.clock += 1
        if self._latest is None:
            return
        for fact in facts(event):
            if fact[0] in ("gone", "moved"):
                self._latest[str(fact[0]), str(fact[1])] = self.clock

    def note(self, event: MailboxEvent) -> None:
        """Note an event that was reported."""
        self.announce(event)
        for fact in facts(event):
            # An id that comes back (a restored item) starts over.
            if fact[0] == "gone":
                self._discard(("made", fact[1]), ("arrived", fact[1]), ("came", fact[1]))
            elif fact[0] == "made":
                self._discard(("gone", fact[1]))
            self._since.add(hash(fact))
        if event.recovered or event.subject is None:
            return  # what a comparison found is part of the snapshot
        for folder, id_ in disappeared(event):
            self.mark_compared((id_,), folder)
        if (place := appeared(event)) is not None:
            folder, id_ = place
            ids = self._ids.setdefault(folder, set())
            self._id_count += id_ not in ids
            ids.add(id_)

    def _discard(self, *discarded: tuple[object, ...]) -> None:
        for fact in discarded:
            self._since.discard(hash(fact))
            self._before.discard(hash(fact))

    def begin_comparison(self) -> None:
        self._before |= self._since
        self._since = set()
        self._cleared = False
        self._latest = {}

    def end_comparison(self) -> None:
        self._latest = None

    def complete_comparison(self) -> None:
        self._earlier, self._before = self._before, set()
        self.incomplete = self._cleared

    def drop_earlier(self) -> bool:
        """Drop the facts that only had_earlier() needs; return whether there were any."""
        dropped, self._earlier = bool(self._earlier), set()
        return dropped

    def clear(self) -> None:
        self._earlier, self._before, self._since = set(), set(), set()
        self._ids, self._id_count = {}, 0
        self.incomplete = self._cleared = True


class ReportedItems:
    """Items that were reported to handlers and not reported as deleted, by mailbox and folder.

    Holds the latest `most` items of all mailboxes, of about 400 bytes each.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._order: dict[tuple[str, str, str], None] = {}
        self._mailboxes: dict[str, dict[str, set[str]]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def of(self, mailbox: str, folder: str) -> set[str]:
        """Return the ids of the items in a folder."""
        return set(self._mailboxes.get(mailbox, {}).get(folder, ()))

    def note(self, event: MailboxEvent) -> None:
        """Note an event that was reported."""
        if event.item_id is None:
            return
        for folder, id_ in disappeared(event):
            self._remove((event.mailbox, folder, id_))
        if (place := appeared(event)) is not None:
            key = (event.mailbox, *place)
            self._order.pop(key, None)
            self._order[key] = None
            self._mailboxes.setdefault(event.mailbox, {}).setdefault(place[0], set()).add(place[1])
            if len(self._order) > self.most:
                self._remove(next(iter(self._order)))

    def drop(self, mailbox: str) -> None:
        """Drop a mailbox that is not subscribed any more."""
        for folder, ids in self._mailboxes.pop(mailbox, {}).items():
            for id_ in ids:
                del self._order[mailbox, folder, id_]

    def _remove(self, key: tuple[str, str, str]) -> None:
        if key not in self._order:
            return
        del self._order[key]
        mailbox, folder, id_ = key
        ids = self._mailboxes[mailbox][folder]
        ids.remove(id_)
        if not ids:
            del self._mailboxes[mailbox][folder]


def appeared(event: MailboxEvent) -> tuple[str, str] | None:
    """Return the folder and the id of a thing that an event reports as present; of a folder only if it is new."""
    word, is_item = event.type.rpartition(".")[2], event.item_id is not None
    is_present = word in ("created", "new_mail", "copied") or (is_item and word in ("moved", "modified"))
    if event.subject is None or not is_present:
        return None
    return (event.parent_folder_id or "" if is_item else FOLDERS), event.subject


def disappeared(event: MailboxEvent) -> Iterator[tuple[str, str]]:
    """Yield the folder and the id of a thing that an event reports as deleted or moved away."""
    word, is_item = event.type.rpartition(".")[2], event.item_id is not None
    if word == "deleted" and event.subject is not None:
        yield (event.parent_folder_id or "" if is_item else FOLDERS), event.subject
    elif word == "moved" and is_item and event.old_item_id is not None:
        yield event.old_parent_folder_id or "", event.old_item_id


def facts(event: MailboxEvent) -> Iterator[tuple[object, ...]]:
    """Yield the facts that later comparisons need.

    `(id, change key)`: reported in this state. "made": the id exists. "arrived": as new mail. "came": by a move or
    copy. "moved": a folder, to this parent. "gone": the id does not exist any more.
    """
    word, id_ = event.type.rpartition(".")[2], event.subject
    yield id_, event.change_key
    match word:
        case "created":
            yield "made", id_
        case "new_mail":
            yield "made", id_
            yield "arrived", id_
        case "copied":
            yield "made", id_
            yield "copied", id_
            yield "came", id_
        case "moved":
            yield "made", id_
            yield "came", id_
            if event.item_id is None:
                yield "moved", id_, event.parent_folder_id
            else:
                yield "gone", event.old_item_id
        case "deleted":
            yield "gone", id_
        case "modified":
            yield "modified", id_, event.change_key
            if event.item_id is None:
                # Some servers give all folders the same change key.
                yield id_, event.change_key, event.unread_count


def report_key(event: MailboxEvent) -> tuple[str | None, ...]:
    """Return what a live and a recovered report of the same change have in common."""
    word = event.type.rpartition(".")[2]
    once = word in ("created", "new_mail", "deleted")  # in the life of an id
    return (event.type, event.subject) if once else (event.type, event.subject, event.change_key)


class DeliveryHistory:
    """The events of all mailboxes since each was last compared.

    It is bounded. If a mailbox has more than `each` facts, that mailbox drops facts; if all together have more than
    `total`, the one with the most does. Facts from before the last comparison are dropped first, then all of them.
    The next comparison then reports changes again, and does not count them as missed.
    `reported_items`, at most `present`, are kept regardless of age.
    """

    def __init__(self, *, each: int = 50_000, total: int = 2_000_000, present: int = 100_000) -> None:
        self.each = each
        self.total = total
        self.reported_items = ReportedItems(present)
        self._mailboxes: dict[str, MailboxHistory] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, mailbox: str) -> MailboxHistory:
        """Return the history of one mailbox."""
        history = self._mailboxes.get(mailbox)
        if history is None:
            history = self._mailboxes[mailbox] = MailboxHistory()
        return history

    def announce(self, events: Iterable[MailboxEvent]) -> None:
        """Note events that are being written to the journal, before all that is written later; note() follows."""
        for event in events:
            if (history := self._mailboxes.get(event.mailbox)) is not None:
                history.announce(event)

    def note(self, events: Iterable[MailboxEvent]) -> None:
        """Note events that were reported."""
        for event in events:
            self.reported_items.note(event)
            history = self.of(event.mailbox)
            before = len(history)
            history.note(event)
            self._count += len(history) - before
            if len(history) > self.each:
                while len(history) > self.each:  # after drop_earlier() there may still be too many
                    self._shrink(history)
            elif self._count > self.total:
                self._shrink(max(self._mailboxes.values(), key=len))

    def mark_incomplete(self, mailboxes: Iterable[str]) -> None:
        """Note that events of these mailboxes are unknown. Until the next comparison they count as dropped."""
        for mailbox in mailboxes:
            self.of(mailbox).incomplete = True

    def begin_comparison(self, mailbox: str) -> None:
        """Note that a comparison of the mailbox begins."""
        self._counted(mailbox, MailboxHistory.begin_comparison)

    def end_comparison(self, mailbox: str) -> None:
        """Note that the comparison has ended, successfully or not."""
        self._counted(mailbox, MailboxHistory.end_comparison)

    def complete_comparison(self, mailbox: str) -> None:
        """Note that the comparison succeeded: events from before begin_comparison() are part of the snapshot now."""
        self._counted(mailbox, MailboxHistory.complete_comparison)

    def mark_compared(self, mailbox: str, ids: Iterable[str], folder: str = FOLDERS) -> None:
        """Drop ids, as MailboxHistory.mark_compared() does."""
        self._counted(mailbox, lambda history: history.mark_compared(ids, folder))

    def drop(self, mailbox: str) -> None:
        """Drop a mailbox that is not subscribed any more."""
        self.reported_items.drop(mailbox)
        if (history := self._mailboxes.pop(mailbox, None)) is not None:
            self._count -= len(history)

    def _shrink(self, history: MailboxHistory) -> None:
        self._count -= len(history)
        if history.drop_earlier():
            self._count += len(history)
        else:
            history.clear()

    def _counted(self, mailbox: str, change: Callable[[MailboxHistory], None]) -> None:
        history = self.of(mailbox)
        before = len(history)
        change(history)
        self._count += len(history) - before
