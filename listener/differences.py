"""What differs between a mailbox as it was known and as it is, and which events have not told it yet. Pure.

The rules:

1. A folder whose marks (Folder.commit_time_max, deleted_count_total, the counts, the change key) are what they were
   has not changed. Times are of whole seconds there, so a folder that has changed is looked at once more.
2. What the streams told is remembered in `Delivered`, from the moment at which the mailbox was last compared with
   what is known of it: all that came before is part of that knowledge.
3. A change is told if an event told of the thing in just this state. Who wants creations is told of a creation even
   if a later modification has been told.
4. What came, was told of, and has gone since, is in no difference of the mailbox: its id is remembered, and looked
   for.
5. What a subscription would not have told (because it does not ask for moves, say) cannot have been missed by it: in
   a sweep (`trusting`) it is no difference, after a gap it is.
6. A move cannot be told from a deletion here and a creation there, since the item has another id there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import msgspec

from listener.event import MailboxEvent
from listener.ews.folders import Folder
from listener.ews.items import Item
from listener.ews.sync import Change, ChangeKind


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a folder: how it looked when it was last compared, and the SyncState of its items.

    `complete`: the state tells of all items; until then it was given with a page amid the first ones. `settled`: the
    folder has not changed between the last two looks.
    """

    folder: Folder
    sync_state: str | None = None
    complete: bool = False
    settled: bool = False


# --- folders


class Differences(NamedTuple):
    """`changed` are pairs of what was and what is. `touched` are the ids of known folders whose items may have
    changed."""

    created: tuple[Folder, ...]
    deleted: tuple[Folder, ...]
    changed: tuple[tuple[Folder, Folder], ...]
    touched: frozenset[str]


def compare(known: Mapping[str, Record], now: Mapping[str, Folder]) -> Differences:
    """How the folders, by their ids, differ from what is known of them."""
    both = [(known[id_], folder) for id_, folder in now.items() if id_ in known]
    return Differences(
        created=tuple(folder for id_, folder in now.items() if id_ not in known),
        deleted=tuple(record.folder for id_, record in known.items() if id_ not in now),
        changed=tuple((record.folder, now) for record, now in both if _shape(record.folder) != _shape(now)),
        touched=frozenset(now.folder_id for record, now in both if _is_touched(record, now)),
    )


def _shape(folder: Folder) -> tuple[object, ...]:
    """What a folder event tells of: name, place and counts, but not when an item was edited."""
    return (*_place(folder), folder.change_key, folder.total_count, folder.unread_count)


def _place(folder: Folder) -> tuple[object, ...]:
    return folder.parent_folder_id, folder.display_name


def _is_touched(record: Record, now: Folder) -> bool:
    marks = now.commit_time_max, now.deleted_count_total
    if not record.settled or None in marks:
        return True
    before = record.folder
    return marks != (before.commit_time_max, before.deleted_count_total) or _shape(before) != _shape(now)


def most_created(before: Folder, now: Folder) -> int | None:
    """How many items can have come between these two looks; None if that cannot be told.

    A server that silently takes a SyncState for none tells of more than that as created.
    """
    if before.total_count is None or now.total_count is None:
        return None
    if before.deleted_count_total is None or now.deleted_count_total is None:
        return None
    gone = max(0, now.deleted_count_total - before.deleted_count_total)
    return max(0, now.total_count - before.total_count + gone)


def below(top: str, folders: Mapping[str, Folder]) -> list[Folder]:
    """A folder and those at any depth below it."""
    inside = {top: True}

    def is_inside(id_: str | None) -> bool:
        path = []
        while id_ is not None and id_ not in inside and id_ in folders and id_ not in path:
            path.append(id_)
            id_ = folders[id_].parent_folder_id
        answer = inside.get(id_ or "", False)
        inside.update(dict.fromkeys(path, answer))
        return answer

    return [folder for id_, folder in folders.items() if is_inside(id_)]


# --- what was told

FOLDERS = ""
"""Stands for the folder of folders."""


class Notes:
    """What the streams told of one mailbox, as hashes: 70 bytes or so a fact, one to four facts an event. The ids of
    what it told of are kept too: of what came and went since the last SyncState, the next one says nothing.

    `forgetful`: some of it was forgotten, because there was too much.
    """

    def __init__(self) -> None:
        self._before: set[int] = set()
        self._since: set[int] = set()
        self._seen: dict[str, set[str]] = {}
        self._seen_count = 0
        self.forgetful = False
        self._forgot = False

    def __len__(self) -> int:
        return len(self._before) + len(self._since) + self._seen_count

    def has(self, *fact: object) -> bool:
        """Whether this was noted. See facts() for what is."""
        key = hash(fact)
        return key in self._since or key in self._before

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

    def note(self, event: MailboxEvent) -> None:
        self._since.update(map(hash, facts(event)))
        if event.recovered or event.subject is None:
            return  # what was found by looking is part of what is known
        word = event.type.rpartition(".")[2]
        is_item = event.item_id is not None
        folder = event.parent_folder_id or "" if is_item else FOLDERS
        if word == "deleted":
            self.look((event.subject,), folder)
        elif word == "moved" and is_item and event.old_item_id is not None:
            self.look((event.old_item_id,), event.old_parent_folder_id or "")
        if word in ("created", "new_mail", "copied") or (is_item and word in ("moved", "modified")):
            seen = self._seen.setdefault(folder, set())
            self._seen_count += event.subject not in seen
            seen.add(event.subject)

    def begin(self) -> None:
        self._before |= self._since
        self._since = set()
        self._forgot = False

    def done(self) -> None:
        self._before = set()
        self.forgetful = self._forgot

    def forget(self) -> None:
        self._before, self._since = set(), set()
        self._seen, self._seen_count = {}, 0
        self.forgetful = self._forgot = True


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


class Delivered:
    """What the streams told of all mailboxes since each was last compared with what is known of it.

    It is bounded: of a mailbox that passes `each` facts, and of the one with the most when all together pass `total`,
    everything is forgotten. Then the next comparison tells things again, and does not take them for missed.
    """

    def __init__(self, *, each: int = 50_000, total: int = 2_000_000) -> None:
        self.each = each
        self.total = total
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
            notes = self.of(event.mailbox)
            before = len(notes)
            notes.note(event)
            self._count += len(notes) - before
            if len(notes) > self.each:
                self._forget(notes)
            elif self._count > self.total:
                self._forget(max(self._notes.values(), key=len))

    def begin(self, mailbox: str) -> None:
        """The mailbox is about to be compared."""
        self._counted(mailbox, Notes.begin)

    def done(self, mailbox: str) -> None:
        """It was: what was noted before begin() is part of what is known now."""
        self._counted(mailbox, Notes.done)

    def look(self, mailbox: str, ids: Iterable[str], folder: str = FOLDERS) -> None:
        """As Notes.look()."""
        self._counted(mailbox, lambda notes: notes.look(ids, folder))

    def drop(self, mailbox: str) -> None:
        """The mailbox is not listened to any more."""
        if (notes := self._notes.pop(mailbox, None)) is not None:
            self._count -= len(notes)

    def _forget(self, notes: Notes) -> None:
        self._count -= len(notes)
        notes.forget()

    def _counted(self, mailbox: str, change: Callable[[Notes], None]) -> None:
        notes = self.of(mailbox)
        before = len(notes)
        change(notes)
        self._count += len(notes) - before


# --- events


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a difference is judged by.

    `kinds` are the last words of the types that the subscription asks for. `trusting`: as far as is known the stream
    was there all the time. `folder` is where the items are, `is_inbox` whether mail arrives there, and `cutoff` when
    the folder was last known to have changed, by the server's clock.
    """

    mailbox: str
    kinds: frozenset[str]
    time: str
    trusting: bool = False
    folder: Folder | None = None
    is_inbox: bool = False
    cutoff: datetime | None = None


def item_events(change: Change, about: Context, notes: Notes) -> list[MailboxEvent]:
    """What is to be told of a change of an item: nothing, if it was told."""
    words = _item_words(change, about, notes)
    folder = about.folder
    assert folder is not None
    if words and (folder.folder_class or "").startswith("IPF.Appointment"):
        words = (*words, "free_busy_changed")
    return [
        MailboxEvent(
            type=f"exchange.item.{word}",
            mailbox=about.mailbox,
            time=about.time,
            item_id=change.item_id,
            change_key=change.change_key,
            parent_folder_id=folder.folder_id,
            recovered=True,
        )
        for word in words
        if word in about.kinds
    ]


def _item_words(change: Change, about: Context, notes: Notes) -> tuple[str, ...]:
    id_, key = change.item_id, change.change_key
    match change.kind:
        case ChangeKind.DELETE:
            untold = not notes.has("gone", id_) and not (about.trusting and "moved" not in about.kinds)
            return ("deleted",) if untold else ()
        case ChangeKind.READ_FLAG:
            return () if _has_state(notes, about, "modified", id_, key=key) else ("modified",)
        case ChangeKind.CREATE:
            return _created_words(change, about, notes)
    return () if _has_state(notes, about, id_, key=key) else ("modified",)


def _created_words(change: Change, about: Context, notes: Notes) -> tuple[str, ...]:
    id_ = change.item_id
    # Mail that arrived, or an item that was moved or copied here?
    new = is_new(change, about.cutoff)
    if not notes.has("made", id_):
        if about.trusting and not new and not about.kinds.issuperset(("moved", "copied")):
            return ()
        return ("created", "new_mail") if about.is_inbox and new else ("created",)
    if not _has_state(notes, about, id_, key=change.change_key):
        return ("modified",)
    arrived = notes.has("arrived", id_) or notes.has("came", id_)
    return ("new_mail",) if about.is_inbox and new and not arrived and not about.trusting else ()


def _has_state(notes: Notes, about: Context, *fact: object, key: str | None) -> bool:
    """Whether it was told in this state. Some servers leave out the change keys of events: in a sweep any event about
    it will do then."""
    return notes.has(*fact, key) or (about.trusting and notes.has(*fact, None))


def is_new(item: Change, cutoff: datetime | None) -> bool:
    """Whether an item was made at this moment or later, as far as can be told."""
    made = moment(item.date_time_created)
    return made is None or cutoff is None or made >= cutoff


def as_found(item: Item, cutoff: datetime | None) -> Change:
    """An item as a change, of which only its times tell whether it is new."""
    change = Change(
        kind=ChangeKind.UPDATE,
        item_id=item.item_id,
        change_key=item.change_key,
        date_time_created=item.date_time_created,
    )
    return msgspec.structs.replace(change, kind=ChangeKind.CREATE) if is_new(change, cutoff) else change


def parted(changes: Iterable[Change], cutoff: datetime | None) -> tuple[list[Change], list[Change]]:
    """Those that are created and nevertheless older than the cutoff, and the others."""
    old: list[Change] = []
    new: list[Change] = []
    for change in changes:
        modified = moment(change.last_modified_time)
        is_old = change.kind is ChangeKind.CREATE and cutoff and modified and modified < cutoff
        (old if is_old else new).append(change)
    return old, new


def moment(time: str | None) -> datetime | None:
    """RFC 3339 as an aware datetime; None if it is none."""
    try:
        found = datetime.fromisoformat(time or "")
    except ValueError:
        return None
    return found if found.tzinfo else None


def folder_events(
    differences: Differences, about: Context, notes: Notes, vanished: Iterable[str] = ()
) -> list[MailboxEvent]:
    """What is to be told of folders themselves: created and moved ones first, deleted ones last.

    Trusting, what lies in a new or deleted folder is passed over, since servers tell of the uppermost only, and so
    are folders of which nothing but the contents has changed.
    """
    events = []
    apart = {folder.folder_id for folder in (*differences.created, *differences.deleted)}

    def add(word: str, folder: Folder, **more: str | None) -> None:
        if word in about.kinds:
            event = MailboxEvent(
                type=f"exchange.folder.{word}",
                mailbox=about.mailbox,
                time=about.time,
                folder_id=folder.folder_id,
                change_key=folder.change_key,
                parent_folder_id=folder.parent_folder_id,
                unread_count=folder.unread_count if word == "modified" else None,
                recovered=True,
                **more,
            )
            events.append(event)

    for folder in differences.created:
        if not notes.has("made", folder.folder_id):
            if not (about.trusting and folder.parent_folder_id in apart):
                add("created", folder)
        elif not about.trusting and not notes.has(folder.folder_id, folder.change_key):
            add("modified", folder)
    for before, now in differences.changed:
        if before.parent_folder_id != now.parent_folder_id and not notes.has(
            "moved", now.folder_id, now.parent_folder_id
        ):
            old = before.parent_folder_id
            add("moved", now, old_folder_id=now.folder_id, old_parent_folder_id=old)
        elif (not about.trusting or _place(before) != _place(now)) and not _is_told(before, now, notes):
            add("modified", now)
    for folder in differences.deleted:
        inner = about.trusting and folder.parent_folder_id in apart
        if not inner and not notes.has("gone", folder.folder_id):
            add("deleted", folder)
    return events


def _is_told(before: Folder, now: Folder, notes: Notes) -> bool:
    if before.change_key != now.change_key:
        return notes.has(now.folder_id, now.change_key)
    return notes.has(now.folder_id, now.change_key, now.unread_count)
