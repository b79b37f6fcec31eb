"""What differs between a mailbox as it was known and as it is, and which events have not told it yet. Pure.

The rules:

1. A folder whose marks (Folder.commit_time_max, deleted_count_total, the counts, the change key) are what they were
   has not changed. Times are of whole seconds there, so a folder that has changed is looked at once more.
2. A change is told if an event told of the thing in just this state (delivered.py). Who wants creations is
   told of a creation even if a later modification has been told.
3. What a subscription would not have told (because it does not ask for moves, say) cannot have been missed by it: in
   a sweep (`trusting`) it is no difference, after a gap it is.
4. A folder of which it is not known how it was when a gap began may have changed in it: it is `doubtful`, and told of
   unless its present state was.
5. Nothing is reported of a thing after an event reported its deletion, or its move to another id. An answer of the
   server is older than the events that came since its request was sent: a thing that it shows, and that such an
   event deleted, is gone. If the event came before the request was sent, the thing has come back with the same id,
   and counts as new.
6. A move cannot be told from a deletion here and a creation there, since the item has another id there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import msgspec

from listener.catchup.history import Notes
from listener.event import MailboxEvent
from listener.ews.folders import Folder
from listener.ews.items import Item
from listener.ews.sync import Change, ChangeKind
from listener.ews.values import moment


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a folder: how it looked when it was last compared, and the SyncState of its items.

    `complete`: the state tells of all items; until then it was given with a page amid the first ones. An empty folder
    needs none for that. `young`: the state became complete after that look, so it hides what changed in between.
    `settled`: the folder has not changed between the last two looks. `start`: when the folder was first listened to,
    if that is later than the mailbox as a whole; Unix seconds by the server's clock.
    """

    folder: Folder
    sync_state: str | None = None
    complete: bool = False
    young: bool = False
    settled: bool = False
    start: float | None = None

    @classmethod
    def first(cls, folder: Folder, *, settled: bool = False, start: float | None = None) -> Record:
        """Of a folder at which nobody has looked before."""
        return cls(folder=folder, complete=folder.total_count == 0, settled=settled, start=start)


# --- folders


class Differences(NamedTuple):
    """`changed` are pairs of what was and what is. `touched` are the ids of known folders whose items may have
    changed. Of `doubtful` ones it is not known how they were."""

    created: tuple[Folder, ...]
    deleted: tuple[Folder, ...]
    changed: tuple[tuple[Folder, Folder], ...]
    touched: frozenset[str]
    doubtful: tuple[Folder, ...] = ()


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


# --- events


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a difference is judged by.

    `kinds` are the last words of the types that the subscription asks for. `trusting`: as far as is known the stream
    was there all the time. `folder` is where the items are, `is_inbox` whether mail arrives there, and `cutoff` when
    the folder was last known to have changed, by the server's clock. `asked` is the clock of the notes when the
    request was sent whose answer shows the change; `parents` are the parents of the folders in that answer, by id.
    """

    mailbox: str
    kinds: frozenset[str]
    time: str
    trusting: bool = False
    folder: Folder | None = None
    is_inbox: bool = False
    cutoff: datetime | None = None
    asked: int = 0
    parents: Mapping[str, str | None] = field(default_factory=dict)


def item_events(change: Change, about: Context, notes: Notes) -> list[MailboxEvent]:
    """What is to be told of a change of an item: nothing, if it was told."""
    folder = about.folder
    assert folder is not None
    if change.kind is not ChangeKind.DELETE and (
        notes.since(about.asked, "gone", change.item_id) or _is_gone(folder.folder_id, about, notes)
    ):
        return []
    words = _item_words(change, about, notes)
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


def _is_gone(folder_id: str | None, about: Context, notes: Notes) -> bool:
    """Whether a folder, or one that it is in, was deleted after the answer that shows it."""
    passed: set[str] = set()
    while folder_id is not None and folder_id not in passed:
        if notes.since(about.asked, "gone", folder_id):
            return True
        passed.add(folder_id)
        folder_id = about.parents.get(folder_id)
    return False


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


def came_since(item: Item, since: datetime) -> bool:
    """Whether an item is new in its mailbox since then. What was imported or migrated since then was received
    before."""
    made, received = moment(item.date_time_created), moment(item.date_time_received)
    return made is not None and made >= since and (received is None or received >= since)


def changed_since(folder: Folder, since: datetime | None) -> bool:
    """Whether a folder itself may have changed since then, as far as its times can tell: a change of an item need not
    be one of the folder."""
    time = moment(folder.modified_time) or moment(folder.commit_time_max)
    return since is None or time is None or time >= since


def folder_events(differences: Differences, about: Context, notes: Notes) -> list[MailboxEvent]:
    """What is to be told of folders themselves: created and moved ones first, deleted ones last.

    Trusting, what came in the copy of a folder is passed over, since that is told as one event.
    """
    events = []
    copies = _copies(differences.created, notes)

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

    def is_gone(folder: Folder) -> bool:
        return _is_gone(folder.folder_id, about, notes) or _is_gone(folder.parent_folder_id, about, notes)

    for folder in differences.created:
        if is_gone(folder):
            continue
        if not notes.has("made", folder.folder_id):
            if not (about.trusting and folder.parent_folder_id in copies):
                add("created", folder)
        elif not _is_told(folder, about, notes):
            add("modified", folder)
    for before, now in differences.changed:
        if is_gone(now):
            continue
        moved = before.parent_folder_id != now.parent_folder_id
        if (
            moved
            and not notes.has("moved", now.folder_id, now.parent_folder_id)
            and not notes.since(about.asked, "moved", now.folder_id)
        ):
            old = before.parent_folder_id
            add("moved", now, old_folder_id=now.folder_id, old_parent_folder_id=old)
        elif not _is_told(now, about, notes, before):
            add("modified", now)
    for folder in differences.doubtful:
        if not is_gone(folder) and not _is_told(folder, about, notes):
            add("modified", folder)
    for folder in differences.deleted:
        if not notes.has("gone", folder.folder_id):
            add("deleted", folder)
    return events


def _copies(created: Iterable[Folder], notes: Notes) -> set[str]:
    """The new folders that are copies, and those that came inside of them."""
    copies: set[str] = set()
    for folder in created:  # parents stand before their children
        if folder.parent_folder_id in copies or notes.has("copied", folder.folder_id):
            copies.add(folder.folder_id)
    return copies


def _is_told(now: Folder, about: Context, notes: Notes, before: Folder | None = None) -> bool:
    """Whether it was told in this state. In a sweep any event about it will do where change keys say nothing."""
    id_, key = now.folder_id, now.change_key
    if before is not None and before.change_key == key and not about.trusting:
        return notes.has(id_, key, now.unread_count)
    return notes.has(id_, key) or (about.trusting and notes.has(id_, None))
