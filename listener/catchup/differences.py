"""Differences between a mailbox and its snapshot, and the events that have not reported them yet. Pure.

The rules:

1. A folder whose marks (Folder.commit_time_max, deleted_count_total, the counts, the change key) are the same as
   before has not changed. Times are whole seconds, so a folder that has changed is compared once more.
2. A change counts as reported if an event reported the thing in just this state (history.py). If creations are
   subscribed, a creation is reported even if a later modification has been reported.
3. A subscription cannot have missed a change that it does not ask for (a move, say). In a sweep (`stream_reliable`)
   that is no difference; after a gap it is.
4. A folder whose state at the start of a gap is unknown may have changed in it: it is `uncertain`, and reported
   unless its present state was.
5. Nothing is reported of a thing after an event reported its deletion, or its move to another id. An answer of the
   server is older than the events that came since its request was sent: if the answer shows a thing that such an
   event deleted, the thing is gone. If the event came before the request was sent, the thing is back with the
   same id, and counts as new.
6. A move looks the same as a deletion here and a creation there, since the item has another id there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import msgspec

from listener.catchup.history import MailboxHistory
from listener.event import MailboxEvent
from listener.ews.folders import Folder
from listener.ews.items import Item
from listener.ews.sync import Change, ChangeKind
from listener.ews.values import moment


class FolderRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The stored state of a folder: how it was at the last comparison, and the SyncState of its items.

    `state_complete`: the SyncState covers all items. Until then it belongs to one of the first pages. An empty folder
    needs no SyncState for that. `state_too_recent`: the SyncState became complete after that comparison, so it hides
    changes in between. `settled`: a change since that comparison shows in the folder's times. `subscribed_at`: when
    the folder was first subscribed, if later than the mailbox as a whole; Unix seconds on the server's clock.
    """

    folder: Folder
    sync_state: str | None = None
    state_complete: bool = msgspec.field(name="complete", default=False)
    state_too_recent: bool = msgspec.field(name="young", default=False)
    settled: bool = False
    subscribed_at: float | None = msgspec.field(name="start", default=None)

    @classmethod
    def first(
        cls, folder: Folder, *, settled: bool = False, subscribed_at: float | None = None
    ) -> FolderRecord:
        """Return the record of a folder that has not been compared before."""
        return cls(
            folder=folder,
            state_complete=folder.total_count == 0,
            settled=settled,
            subscribed_at=subscribed_at,
        )


# --- folders


class Differences(NamedTuple):
    """Differences between the folders of a snapshot and those of the mailbox.

    `changed` are pairs of the folder before and now. `touched` are the ids of known folders whose items may have
    changed. The earlier state of `uncertain` folders is unknown.
    """

    created: tuple[Folder, ...]
    deleted: tuple[Folder, ...]
    changed: tuple[tuple[Folder, Folder], ...]
    touched: frozenset[str]
    uncertain: tuple[Folder, ...] = ()


def compare(known: Mapping[str, FolderRecord], now: Mapping[str, Folder]) -> Differences:
    """Return how the folders, by their ids, differ from the snapshot."""
    both = [(known[id_], folder) for id_, folder in now.items() if id_ in known]
    return Differences(
        created=tuple(folder for id_, folder in now.items() if id_ not in known),
        deleted=tuple(record.folder for id_, record in known.items() if id_ not in now),
        changed=tuple((record.folder, now) for record, now in both if _shape(record.folder) != _shape(now)),
        touched=frozenset(now.folder_id for record, now in both if _is_touched(record, now)),
    )


def _shape(folder: Folder) -> tuple[object, ...]:
    """Return what folder events report: name, parent and counts, but not when an item was edited."""
    return (
        folder.parent_folder_id,
        folder.display_name,
        folder.change_key,
        folder.total_count,
        folder.unread_count,
    )


def _is_touched(record: FolderRecord, now: Folder) -> bool:
    marks = now.commit_time_max, now.deleted_count_total
    if not record.settled or None in marks:
        return True
    before = record.folder
    return marks != (before.commit_time_max, before.deleted_count_total) or _shape(before) != _shape(now)


def max_created(before: Folder, now: Folder) -> int | None:
    """Return the highest possible number of items that appeared between two states of a folder; None: unknown.

    A server that silently ignores a SyncState returns more than that as created.
    """
    if before.total_count is None or now.total_count is None:
        return None
    if before.deleted_count_total is None or now.deleted_count_total is None:
        return None
    gone = max(0, now.deleted_count_total - before.deleted_count_total)
    return max(0, now.total_count - before.total_count + gone)


def subtree(top: str, folders: Mapping[str, Folder]) -> list[Folder]:
    """Return a folder and those at any depth below it."""
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
    """What decides whether a difference is reported.

    `kinds` are the last words of the subscribed event types. `stream_reliable`: as far as is known the stream was
    open all the time. `folder` holds the items, `is_inbox`: mail arrives there, and `cutoff` is when the folder was
    last known to have changed, on the server's clock. `request_clock` is the history's clock when the request was
    sent whose answer shows the change; `parents` are the parents of the folders in that answer, by id.
    """

    mailbox: str
    kinds: frozenset[str]
    time: str
    stream_reliable: bool = False
    folder: Folder | None = None
    is_inbox: bool = False
    cutoff: datetime | None = None
    request_clock: int = 0
    parents: Mapping[str, str | None] = field(default_factory=dict)


def item_events(change: Change, context: Context, history: MailboxHistory) -> list[MailboxEvent]:
    """Return the events that report a change of an item: none, if it was reported."""
    folder = context.folder
    assert folder is not None
    if change.kind is not ChangeKind.DELETE and (
        history.reported_since(context.request_clock, "gone", change.item_id)
        or _is_gone(folder.folder_id, context, history)
    ):
        return []
    words = _item_words(change, context, history)
    if words and (folder.folder_class or "").startswith("IPF.Appointment"):
        words = (*words, "free_busy_changed")
    return [
        MailboxEvent(
            type=f"exchange.item.{word}",
            mailbox=context.mailbox,
            time=context.time,
            item_id=change.item_id,
            change_key=change.change_key,
            parent_folder_id=folder.folder_id,
            recovered=True,
        )
        for word in words
        if word in context.kinds
    ]


def _is_gone(folder_id: str | None, context: Context, history: MailboxHistory) -> bool:
    """Return whether a folder, or one above it, was deleted after the answer that shows it."""
    passed: set[str] = set()
    while folder_id is not None and folder_id not in passed:
        if history.reported_since(context.request_clock, "gone", folder_id):
            return True
        passed.add(folder_id)
        folder_id = context.parents.get(folder_id)
    return False


def _item_words(change: Change, context: Context, history: MailboxHistory) -> tuple[str, ...]:
    id_, key = change.item_id, change.change_key
    match change.kind:
        case ChangeKind.DELETE:
            unreported = not history.has("gone", id_) and not (
                context.stream_reliable and "moved" not in context.kinds
            )
            return ("deleted",) if unreported else ()
        case ChangeKind.READ_FLAG:
            return () if _has_state(history, context, "modified", id_, key=key) else ("modified",)
        case ChangeKind.CREATE:
            return _created_words(change, context, history)
    return () if _has_state(history, context, id_, key=key) else ("modified",)


def _created_words(change: Change, context: Context, history: MailboxHistory) -> tuple[str, ...]:
    id_ = change.item_id
    # New: mail that arrived. Not new: an item that was moved or copied here.
    new = is_new(change, context.cutoff)
    if not history.has("made", id_):
        if context.stream_reliable and not new and not context.kinds.issuperset(("moved", "copied")):
            return ()
        return ("created", "new_mail") if context.is_inbox and new else ("created",)
    if not _has_state(history, context, id_, key=change.change_key):
        return ("modified",)
    arrived = history.has("arrived", id_) or history.has("came", id_)
    return ("new_mail",) if context.is_inbox and new and not arrived and not context.stream_reliable else ()


def _has_state(history: MailboxHistory, context: Context, *fact: object, key: str | None) -> bool:
    """Return whether an item was reported in this state.

    Some servers leave out the change keys of events. In a sweep, any event about the item suffices then.
    """
    return history.has(*fact, key) or (context.stream_reliable and history.has(*fact, None))


def is_new(item: Change, cutoff: datetime | None) -> bool:
    """Return whether an item was created at this moment or later, or may have been."""
    made = moment(item.date_time_created)
    return made is None or cutoff is None or made >= cutoff


def as_change(item: Item, cutoff: datetime | None) -> Change:
    """Return an item as a change: a creation if its times show that it is new."""
    change = Change(
        kind=ChangeKind.UPDATE,
        item_id=item.item_id,
        change_key=item.change_key,
        date_time_created=item.date_time_created,
    )
    return msgspec.structs.replace(change, kind=ChangeKind.CREATE) if is_new(change, cutoff) else change


def split_old(changes: Iterable[Change], cutoff: datetime | None) -> tuple[list[Change], list[Change]]:
    """Return the created items that were last modified before the cutoff, and the other changes."""
    old: list[Change] = []
    new: list[Change] = []
    for change in changes:
        modified = moment(change.last_modified_time)
        is_old = change.kind is ChangeKind.CREATE and cutoff and modified and modified < cutoff
        (old if is_old else new).append(change)
    return old, new


def arrived_since(item: Item, since: datetime) -> bool:
    """Return whether an item is new in its mailbox since then.

    An imported or migrated item does not count: it was received before.
    """
    made, received = moment(item.date_time_created), moment(item.date_time_received)
    return made is not None and made >= since and (received is None or received >= since)


def changed_since(folder: Folder, since: datetime | None) -> bool:
    """Return whether a folder itself may have changed since then, by its times.

    A change of an item is not always a change of its folder.
    """
    time = moment(folder.modified_time) or moment(folder.commit_time_max)
    return since is None or time is None or time >= since


def folder_events(differences: Differences, context: Context, history: MailboxHistory) -> list[MailboxEvent]:
    """Return the events that report changes of folders themselves: created and moved ones first, deleted ones last.

    With a reliable stream, folders inside a copied folder are left out, because the copy is reported as one event.
    """
    events = []
    copies = _copies(differences.created, history)

    def add(word: str, folder: Folder, **more: str | None) -> None:
        if word in context.kinds:
            event = MailboxEvent(
                type=f"exchange.folder.{word}",
                mailbox=context.mailbox,
                time=context.time,
                folder_id=folder.folder_id,
                change_key=folder.change_key,
                parent_folder_id=folder.parent_folder_id,
                unread_count=folder.unread_count if word == "modified" else None,
                recovered=True,
                **more,
            )
            events.append(event)

    def is_gone(folder: Folder) -> bool:
        return _is_gone(folder.folder_id, context, history) or _is_gone(
            folder.parent_folder_id, context, history
        )

    for folder in differences.created:
        if is_gone(folder):
            continue
        if not history.has("made", folder.folder_id):
            if not (context.stream_reliable and folder.parent_folder_id in copies):
                add("created", folder)
        elif not _is_reported(folder, context, history):
            add("modified", folder)
    for before, now in differences.changed:
        if is_gone(now):
            continue
        moved = before.parent_folder_id != now.parent_folder_id
        if (
            moved
            and not history.has("moved", now.folder_id, now.parent_folder_id)
            and not history.reported_since(context.request_clock, "moved", now.folder_id)
        ):
            old = before.parent_folder_id
            add("moved", now, old_folder_id=now.folder_id, old_parent_folder_id=old)
        elif not _is_reported(now, context, history, before):
            add("modified", now)
    for folder in differences.uncertain:
        if not is_gone(folder) and not _is_reported(folder, context, history):
            add("modified", folder)
    for folder in differences.deleted:
        if not history.has("gone", folder.folder_id):
            add("deleted", folder)
    return events


def _copies(created: Iterable[Folder], history: MailboxHistory) -> set[str]:
    """Return the ids of new folders that are copies or are inside of copies."""
    copies: set[str] = set()
    for folder in created:  # parents precede their children
        if folder.parent_folder_id in copies or history.has("copied", folder.folder_id):
            copies.add(folder.folder_id)
    return copies


def _is_reported(
    now: Folder, context: Context, history: MailboxHistory, before: Folder | None = None
) -> bool:
    """Return whether a folder was reported in this state.

    In a sweep, any event about the folder suffices if events have no change keys.
    """
    id_, key = now.folder_id, now.change_key
    if before is not None and before.change_key == key and not context.stream_reliable:
        return history.has(id_, key, now.unread_count)
    return history.has(id_, key) or (context.stream_reliable and history.has(id_, None))
