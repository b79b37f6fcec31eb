"""What handlers were told of mailboxes since each was last compared with what is known of it. Pure.

The rules:

1. What the streams told is remembered as facts, from the moment at which the mailbox was last compared on: all that
   came before is part of what is known of it.
2. What came, was told of, and has gone since, is in no difference of the mailbox: its id is remembered, and looked
   for.
3. Where a server forgot a SyncState, nothing but our own memory tells what has gone: the ids of the items that were
   told of latest are remembered for that, folder by folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from listener.event import MailboxEvent

FOLDERS = ""
"""Stands for the folder of folders."""


class Notes:
    """What the streams told of one mailbox, as hashes: 70 bytes or so a fact, one to four facts an event; and the ids
    of what it told of.

    `forgetful`: some of it was forgotten, because there was too much, or was never recalled.
    """

    def __init__(self) -> None:
        self._earlier: set[int] = set()
        self._before: set[int] = set()
        self._since: set[int] = set()
        self._seen: dict[str, set[str]] = {}
        self._seen_count = 0
        self.forgetful = False
        self._forgot = False
        self.clock = 0
        """Counts the events that were noted or announced."""
        # By ("gone" or "moved", id): the clock at the latest such event of the comparison that runs now.
        self._latest: dict[tuple[str, str | None], int] | None = None

    def __len__(self) -> int:
        return len(self._earlier) + len(self._before) + len(self._since) + self._seen_count

    def has(self, *fact: object) -> bool:
        """Whether this was noted. See facts() for what is."""
        key = hash(fact)
        return key in self._since or key in self._before

    def had(self, *fact: object) -> bool:
        """Whether this was noted before the mailbox was last compared, as far as that is still remembered."""
        return hash(fact) in self._earlier

    def since(self, clock: int, word: str, id_: str | None) -> bool:
        """Whether an event reported this thing as "gone" or "moved" after the clock had this value.

        Only events of the comparison that runs now count. They are newer than an answer whose request was sent
        when the clock had this value.
        """
        return self._latest is not None and self._latest.get((word, id_), -1) > clock

    def seen(self, folder: str = FOLDERS) -> set[str]:
        """The items in a folder, or the folders, that were there when a stream told of them, and that look() has not
        named since."""
        return set(self._seen.get(folder, ()))

    def look(self, ids: Iterable[str], folder: str = FOLDERS) -> None:
        """These are part of what is known of the folder now, or of what is known to have gone from it."""
        seen = self._seen.get(folder)
        if seen is not None:
            self._seen_count -= len(seen)
            seen.difference_update(ids)
            self._seen_count += len(seen)
            if not seen:
                del self._seen[folder]

    def announce(self, event: MailboxEvent) -> None:
        """The event is being written to the journal. A deletion or a move counts for since() from now on."""
        self.clock += 1
        if self._latest is None:
            return
        for fact in facts(event):
            if fact[0] in ("gone", "moved"):
                self._latest[str(fact[0]), str(fact[1])] = self.clock

    def note(self, event: MailboxEvent) -> None:
        self.announce(event)
        for fact in facts(event):
            # An id that comes back (an item that is restored) starts over.
            if fact[0] == "gone":
                self._discard(("made", fact[1]), ("arrived", fact[1]), ("came", fact[1]))
            elif fact[0] == "made":
                self._discard(("gone", fact[1]))
            self._since.add(hash(fact))
        if event.recovered or event.subject is None:
            return  # what was found by looking is part of what is known
        for folder, id_ in went(event):
            self.look((id_,), folder)
        if (place := came(event)) is not None:
            folder, id_ = place
            seen = self._seen.setdefault(folder, set())
            self._seen_count += id_ not in seen
            seen.add(id_)

    def _discard(self, *gone: tuple[object, ...]) -> None:
        for fact in gone:
            self._since.discard(hash(fact))
            self._before.discard(hash(fact))

    def begin(self) -> None:
        self._before |= self._since
        self._since = set()
        self._forgot = False
        self._latest = {}

    def end(self) -> None:
        self._latest = None

    def done(self) -> None:
        self._earlier, self._before = self._before, set()
        self.forgetful = self._forgot

    def shed(self) -> bool:
        """Forgets what only had() asks for; whether there was anything."""
        shed, self._earlier = bool(self._earlier), set()
        return shed

    def forget(self) -> None:
        self._earlier, self._before, self._since = set(), set(), set()
        self._seen, self._seen_count = {}, 0
        self.forgetful = self._forgot = True


class Present:
    """The items that handlers were told of and not told that they are gone, by mailbox and folder: the latest `most`
    of all mailboxes, of about 400 bytes each."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._order: dict[tuple[str, str, str], None] = {}
        self._mailboxes: dict[str, dict[str, set[str]]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def of(self, mailbox: str, folder: str) -> set[str]:
        """The ids of those in a folder."""
        return set(self._mailboxes.get(mailbox, {}).get(folder, ()))

    def note(self, event: MailboxEvent) -> None:
        """This was told."""
        if event.item_id is None:
            return
        for folder, id_ in went(event):
            self._remove((event.mailbox, folder, id_))
        if (place := came(event)) is not None:
            key = (event.mailbox, *place)
            self._order.pop(key, None)
            self._order[key] = None
            self._mailboxes.setdefault(event.mailbox, {}).setdefault(place[0], set()).add(place[1])
            if len(self._order) > self.most:
                self._remove(next(iter(self._order)))

    def drop(self, mailbox: str) -> None:
        """The mailbox is not listened to any more."""
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


def came(event: MailboxEvent) -> tuple[str, str] | None:
    """The folder and the id of what is there, if an event says so; of a folder only when it is new."""
    word, is_item = event.type.rpartition(".")[2], event.item_id is not None
    there = word in ("created", "new_mail", "copied") or (is_item and word in ("moved", "modified"))
    if event.subject is None or not there:
        return None
    return (event.parent_folder_id or "" if is_item else FOLDERS), event.subject


def went(event: MailboxEvent) -> Iterator[tuple[str, str]]:
    """The folder and the id of what is there no longer."""
    word, is_item = event.type.rpartition(".")[2], event.item_id is not None
    if word == "deleted" and event.subject is not None:
        yield (event.parent_folder_id or "" if is_item else FOLDERS), event.subject
    elif word == "moved" and is_item and event.old_item_id is not None:
        yield event.old_parent_folder_id or "", event.old_item_id


def facts(event: MailboxEvent) -> Iterator[tuple[object, ...]]:
    """What an event tells, as far as it matters later."""
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
    """What two reports of one change have in common, a live one and a recovered one."""
    word = event.type.rpartition(".")[2]
    once = word in ("created", "new_mail", "deleted")  # in the life of an id
    return (event.type, event.subject) if once else (event.type, event.subject, event.change_key)


class DeliveryHistory:
    """What the streams told of all mailboxes since each was last compared with what is known of it.

    It is bounded: of a mailbox that passes `each` facts, and of the one with the most when all together pass `total`,
    first what is older than the last comparison is forgotten, then everything. Then the next comparison tells things
    again, and does not take them for missed.
    `present` are the items that were told of, however long ago.
    """

    def __init__(self, *, each: int = 50_000, total: int = 2_000_000, present: int = 100_000) -> None:
        self.each = each
        self.total = total
        self.present = Present(present)
        self._notes: dict[str, Notes] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, mailbox: str) -> Notes:
        """The notes of one mailbox."""
        notes = self._notes.get(mailbox)
        if notes is None:
            notes = self._notes[mailbox] = Notes()
        return notes

    def note(self, events: Iterable[MailboxEvent]) -> None:
        """These were told."""
        for event in events:
            self.present.note(event)
            notes = self.of(event.mailbox)
            before = len(notes)
            notes.note(event)
            self._count += len(notes) - before
            if len(notes) > self.each:
                while len(notes) > self.each:  # what is left after shed() may still be too much
                    self._forget(notes)
            elif self._count > self.total:
                self._forget(max(self._notes.values(), key=len))

    def doubt(self, mailboxes: Iterable[str]) -> None:
        """Of these, not all is known that was told: until they are compared it is as if some had been forgotten."""
        for mailbox in mailboxes:
            self.of(mailbox).forgetful = True

    def begin(self, mailbox: str) -> None:
        """The mailbox is about to be compared."""
        self._counted(mailbox, Notes.begin)

    def end(self, mailbox: str) -> None:
        """The comparison has ended, with success or without."""
        self._counted(mailbox, Notes.end)

    def announce(self, events: Iterable[MailboxEvent]) -> None:
        """These are being written to the journal, ahead of all that is written later; note() follows."""
        for event in events:
            if (notes := self._notes.get(event.mailbox)) is not None:
                notes.announce(event)

    def done(self, mailbox: str) -> None:
        """It was: what was noted before begin() is part of what is known now."""
        self._counted(mailbox, Notes.done)

    def look(self, mailbox: str, ids: Iterable[str], folder: str = FOLDERS) -> None:
        """As Notes.look()."""
        self._counted(mailbox, lambda notes: notes.look(ids, folder))

    def drop(self, mailbox: str) -> None:
        """The mailbox is not listened to any more."""
        self.present.drop(mailbox)
        if (notes := self._notes.pop(mailbox, None)) is not None:
            self._count -= len(notes)

    def _forget(self, notes: Notes) -> None:
        self._count -= len(notes)
        if notes.shed():
            self._count += len(notes)
        else:
            notes.forget()

    def _counted(self, mailbox: str, change: Callable[[Notes], None]) -> None:
        notes = self.of(mailbox)
        before = len(notes)
        change(notes)
        self._count += len(notes) - before
