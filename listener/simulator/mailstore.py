"""Mailboxes, folders and items, and the events that each change makes.

Every method that changes something takes the time (Unix seconds) and returns the events that Exchange would report,
in order. The store also keeps what a later synchronization needs: each change has a number that increases within its
mailbox. Items and folders keep the numbers of their changes, and folders keep tombstones of the items that left them.

Ids have the format of Exchange: base64 of the mailbox's GUID and a MAPI entry id, 120 characters for a folder and 152
for an item. Change keys contain the change number, so every change of an object has its own key.
"""

from base64 import b64encode
from binascii import b2a_base64
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple
from uuid import UUID

import msgspec

# Distinguished id, display name, folder class, distinguished id of the parent.
_TREE = (
    ("root", "root", "", None),
    ("msgfolderroot", "Top of Information Store", "IPF.Note", "root"),
    ("inbox", "Inbox", "IPF.Note", "msgfolderroot"),
    ("sentitems", "Sent Items", "IPF.Note", "msgfolderroot"),
    ("drafts", "Drafts", "IPF.Note", "msgfolderroot"),
    ("outbox", "Outbox", "IPF.Note", "msgfolderroot"),
    ("deleteditems", "Deleted Items", "IPF.Note", "msgfolderroot"),
    ("junkemail", "Junk Email", "IPF.Note", "msgfolderroot"),
    ("calendar", "Calendar", "IPF.Appointment", "msgfolderroot"),
    ("contacts", "Contacts", "IPF.Contact", "msgfolderroot"),
    ("tasks", "Tasks", "IPF.Task", "msgfolderroot"),
    ("notes", "Notes", "IPF.StickyNote", "msgfolderroot"),
    ("journal", "Journal", "IPF.Journal", "msgfolderroot"),
    ("recoverableitemsroot", "Recoverable Items", "", "root"),
    ("recoverableitemsdeletions", "Deletions", "", "recoverableitemsroot"),
)
KINDS = (
    "CopiedEvent",
    "CreatedEvent",
    "DeletedEvent",
    "ModifiedEvent",
    "MovedEvent",
    "NewMailEvent",
    "FreeBusyChangedEvent",
)


class Event(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One change as Exchange reports it.

    `kind` is the name of the EWS element (one of KINDS), `time` is in Unix seconds. Either the item or the
    folder fields are set, the old ones only for moves and copies.
    """

    kind: str
    mailbox: str
    time: float
    item_id: str | None = None
    folder_id: str | None = None
    change_key: str
    parent_folder_id: str
    parent_change_key: str
    old_id: str | None = None
    old_change_key: str | None = None
    old_parent_folder_id: str | None = None
    old_parent_change_key: str | None = None
    unread_count: int | None = None


TOMBSTONES = 1000
"""Default number of tombstones that a folder keeps."""


class Tombstone(NamedTuple):
    """What remains of an item that left a folder: the number of the change that removed it, and the numbers
    of its changes while it was there."""

    changed: int
    history: tuple[int, ...]


class Item(msgspec.Struct, kw_only=True, eq=False):
    """A message, an appointment or a contact. Times are in Unix seconds.

    `history` has the numbers of its changes in its current folder, `changed` the last of them, `edited` the
    last that concerned more than the read flag.
    """

    id: str
    counter: int
    changed: int
    edited: int
    history: list[int]
    folder: "Folder"
    item_class: str
    subject: str
    sender: str
    created: float
    received: float
    modified: float
    read: bool = True


class Folder(msgspec.Struct, kw_only=True, eq=False):
    """A folder. `items` are in order of arrival.

    `committed` is when an item was last added or changed (Unix seconds). `properties_changed` is the number
    of the last change of its name or parent; `changed` also counts changes of its content. `deleted` has the
    latest tombstones by item id; `deleted_total` counts all items that left. `pruned_change` is the removal
    number of the newest tombstone that was dropped.
    """

    id: str
    counter: int
    changed: int
    properties_changed: int
    parent: "Folder | None"
    distinguished: str | None
    name: str
    folder_class: str
    modified: float
    committed: float
    unread: int = 0
    items: dict[str, Item] = {}
    deleted: dict[str, Tombstone] = {}
    deleted_total: int = 0
    pruned_change: int = 0


class Mailbox:
    """One mailbox with its folder tree. `guid` is its Exchange GUID.

    `sync_epoch` counts how often its SyncStates became invalid (sync.py); `sync_loss_is_silent` says whether
    clients get an error then.

    The tree is built on first use, because most of thousands of mailboxes may never be used.
    """

    def __init__(
        self, address: str, name: str, guid: UUID, created_at: float, *, tombstones: int = TOMBSTONES
    ) -> None:
        self.address = address
        self.name = name
        self.guid = guid
        self.changes = 0
        self.sync_epoch = 0
        self.sync_loss_is_silent = False
        self._created_at = created_at
        self._tombstones = tombstones
        self._counter = 0
        self._replica = b""
        self._item_key = b""
        self._folder_key = b""
        self._id_prefix = b"\x00\x03\x24\x00" + str(guid).encode() + b"\x00"
        self._set_id_store(guid)
        self._folders: dict[str, Folder] = {}
        self._distinguished: dict[str, Folder] = {}

    def _set_id_store(self, store: UUID) -> None:
        """Use this store GUID in new ids and change keys. The ids still name this mailbox."""
        self._replica = UUID(int=store.int ^ 0x5A5A5A5A).bytes_le
        self._item_key = b"\x09\0\0\0\x16\0\0\0" + self._replica
        self._folder_key = b"\x01\0\0\0\x16\0\0\0" + self._replica

    # -- queries ---------------------------------------------------------------------------------------------

    @property
    def folders(self) -> dict[str, Folder]:
        """All folders by id, parents before children."""
        if not self._folders:
            self._build_tree()
        return self._folders

    def distinguished(self, name: str) -> Folder:
        """Return the folder with that distinguished id. Raises KeyError if there is none."""
        self.folders  # noqa: B018  (builds the tree)
        return self._distinguished[name]

    def children(self, folder: Folder) -> list[Folder]:
        """Return the direct subfolders."""
        return [other for other in self.folders.values() if other.parent is folder]

    def below(self, folder: Folder) -> list[Folder]:
        """Return the subfolders at any depth, parents first."""
        found: list[Folder] = []
        for child in self.children(folder):
            found += [child, *self.below(child)]
        return found

    def item(self, item_id: str) -> Item | None:
        """Return the item with that id from any folder, or None."""
        return next((f.items[item_id] for f in self.folders.values() if item_id in f.items), None)

    def own_folders(self) -> list[Folder]:
        """Return the folders that the user created, except those directly in Deleted Items."""
        deleted_items = self.distinguished("deleteditems")
        return [f for f in self.folders.values() if f.distinguished is None and f.parent is not deleted_items]

    def item_count(self) -> int:
        return sum(len(folder.items) for folder in self.folders.values())

    @staticmethod
    def latest(folder: Folder, count: int) -> list[Item]:
        """Return the last items to arrive, newest first, at most `count`."""
        return list(islice(_newest(folder), count))

    def folder_id(self, counter: int) -> str:
        """Return the id of the folder with this counter, even if it no longer exists."""
        entry = bytes(4) + self._replica + b"\x01\x00" + self._replica + counter.to_bytes(6, "big") + bytes(2)
        return b64encode(self._id_prefix + b"\x2e\x00" + entry).decode()

    def change_key(self, obj: Item | Folder) -> str:
        """Return the change key of the current state."""
        key_prefix = self._item_key if isinstance(obj, Item) else self._folder_key
        return b2a_base64(key_prefix + obj.changed.to_bytes(6, "big"), newline=False).decode()

    # -- items -----------------------------------------------------------------------------------------------

    def deliver(self, subject: str, sender: str, now: float) -> list[Event]:
        """Deliver an email to the inbox."""
        item = self._create(self.distinguished("inbox"), "IPM.Note", subject, sender, now, read=False)
        return [
            self._event("CreatedEvent", item, now),
            self._event("NewMailEvent", item, now),
            self._folder_modified(item.folder, now),
        ]

    def save(self, folder: Folder, item_class: str, subject: str, now: float) -> list[Event]:
        """Create an item as the user: a draft, a sent item, an appointment, a contact."""
        item = self._create(folder, item_class, subject, self.address, now, read=True)
        events = [self._event("CreatedEvent", item, now)]
        if folder.folder_class == "IPF.Appointment":
            events.append(self._event("FreeBusyChangedEvent", item, now))
        return [*events, self._folder_modified(folder, now)]

    def mark(self, item: Item, now: float, *, read: bool) -> list[Event]:
        """Set or clear the read flag. Returns no events if it has that value already."""
        if item.read == read:
            return []
        self._changed_item(item, now, flag_only=True)
        item.read = read
        item.folder.unread += -1 if read else 1
        return [self._event("ModifiedEvent", item, now), self._folder_modified(item.folder, now)]

    def edit(self, item: Item, subject: str, now: float) -> list[Event]:
        """Change the item's content."""
        self._changed_item(item, now)
        item.subject = subject
        return [self._event("ModifiedEvent", item, now)]

    def reschedule(self, item: Item, now: float) -> list[Event]:
        """Move an appointment in time, which also changes the owner's free/busy state."""
        self._changed_item(item, now)
        return [self._event("ModifiedEvent", item, now), self._event("FreeBusyChangedEvent", item, now)]

    def move(self, item: Item, target: Folder, now: float) -> list[Event]:
        """Move the item to another folder, where it gets a new id. A user's deletion is a move to Deleted
        Items."""
        source, old_id, old_key = item.folder, item.id, self.change_key(item)
        self._remove_item(item)
        self._insert_item(item, target, now)
        return [
            self._event("MovedEvent", item, now, old_id=old_id, old_change_key=old_key, old_parent=source),
            self._folder_modified(source, now),
            self._folder_modified(target, now),
        ]

    def copy(self, item: Item, target: Folder, now: float) -> list[Event]:
        """Create a second item with the same content, in any folder."""
        duplicate = self._create(target, item.item_class, item.subject, item.sender, now, read=item.read)
        old_key = self.change_key(item)
        return [
            self._event(
                "CopiedEvent", duplicate, now, old_id=item.id, old_change_key=old_key, old_parent=item.folder
            ),
            self._folder_modified(target, now),
        ]

    def purge(self, item: Item, now: float) -> list[Event]:
        """Delete the item permanently."""
        self._remove_item(item)
        self._changed(item, now)
        events = [self._event("DeletedEvent", item, now)]
        if item.folder.folder_class == "IPF.Appointment":
            events.append(self._event("FreeBusyChangedEvent", item, now))
        return [*events, self._folder_modified(item.folder, now)]

    # -- folders ---------------------------------------------------------------------------------------------

    def create_folder(self, name: str, parent: Folder, now: float) -> list[Event]:
        """Create a mail folder."""
        self.changes += 1
        folder = self._add_folder(name, "IPF.Note", parent, None, now)
        return [self._event("CreatedEvent", folder, now), self._folder_modified(parent, now)]

    def rename_folder(self, folder: Folder, name: str, now: float) -> list[Event]:
        """Rename the folder."""
        self._change_properties(folder, now)
        folder.name = name
        return [self._event("ModifiedEvent", folder, now)]

    def move_folder(self, folder: Folder, parent: Folder, now: float) -> list[Event]:
        """Move the folder and its content below another folder. It keeps its id."""
        source, old_key = self._parent(folder), self.change_key(folder)
        self._change_properties(folder, now)
        folder.parent = parent
        # Keep parents before their children; see `folders`.
        for moved in (folder, *self.below(folder)):
            self._folders[moved.id] = self._folders.pop(moved.id)
        return [
            self._event(
                "MovedEvent", folder, now, old_id=folder.id, old_change_key=old_key, old_parent=source
            ),
            self._folder_modified(source, now),
            self._folder_modified(parent, now),
        ]

    def purge_folder(self, folder: Folder, now: float) -> list[Event]:
        """Delete the folder and its content permanently. Exchange reports each folder, but not the items."""
        events = []
        for gone in (*reversed(self.below(folder)), folder):
            self._changed(gone, now)
            del self._folders[gone.id]
            events.append(self._event("DeletedEvent", gone, now))
        return [*events, self._folder_modified(self._parent(folder), now)]

    def lose_sync_states(self, *, quietly: bool) -> None:
        """Invalidate all SyncStates of clients. If `quietly`, clients get no error."""
        self.sync_epoch += 1
        self.sync_loss_is_silent = quietly

    def replace(self, store: UUID, now: float) -> None:
        """Replace this mailbox by a new one with copies of its content.

        Exchange reports no events for that: a subscription is bound to a mailbox, not to an address.
        """
        old = list(self.folders.values())
        self._set_id_store(store)
        self.changes += 1
        self.sync_epoch += 1
        self.sync_loss_is_silent = False
        self._folders, self._distinguished = {}, {}
        copies: dict[str, Folder] = {}
        for folder in old:  # parents come before their children
            above = None if folder.parent is None else copies[folder.parent.id]
            copy = self._add_folder(folder.name, folder.folder_class, above, folder.distinguished, now)
            copies[folder.id] = copy
            for item in folder.items.values():
                duplicate = self._create(
                    copy, item.item_class, item.subject, item.sender, now, read=item.read
                )
                duplicate.received = item.received

    # -- internal --------------------------------------------------------------------------------------------

    def _build_tree(self) -> None:
        for distinguished, name, folder_class, parent in _TREE:
            above = self._distinguished[parent] if parent else None
            self._add_folder(name, folder_class, above, distinguished, self._created_at)

    def _add_folder(
        self, name: str, folder_class: str, parent: Folder | None, distinguished: str | None, now: float
    ) -> Folder:
        self._counter += 1
        folder = Folder(
            id=self.folder_id(self._counter),
            counter=self._counter,
            changed=self.changes,
            properties_changed=self.changes,
            parent=parent,
            distinguished=distinguished,
            name=name,
            folder_class=folder_class,
            modified=now,
            committed=now,
        )
        self._folders[folder.id] = folder
        if distinguished:
            self._distinguished[distinguished] = folder
        return folder

    def _create(
        self, folder: Folder, item_class: str, subject: str, sender: str, now: float, *, read: bool
    ) -> Item:
        item = Item(
            id="",
            counter=0,
            changed=0,
            edited=0,
            history=[],
            folder=folder,
            item_class=item_class,
            subject=subject,
            sender=sender,
            created=now,
            received=now,
            modified=now,
            read=read,
        )
        self._insert_item(item, folder, now)
        return item

    def _insert_item(self, item: Item, folder: Folder, now: float) -> None:
        self._counter += 1
        entry = bytes(4) + self._replica + b"\x07\x00" + self._replica + folder.counter.to_bytes(6, "big")
        entry += bytes(2) + self._replica + self._counter.to_bytes(6, "big") + bytes(2)
        item.id = b64encode(self._id_prefix + b"\x46\x00" + entry).decode()
        item.counter = self._counter
        item.folder = folder
        item.history = []
        self._changed_item(item, now)
        folder.items[item.id] = item
        folder.unread += not item.read

    def _remove_item(self, item: Item) -> None:
        folder = item.folder
        del folder.items[item.id]
        folder.unread -= not item.read
        # The removal has its own number, because the same move may put the item back into this folder.
        self.changes += 1
        folder.deleted[item.id] = Tombstone(self.changes, tuple(item.history))
        folder.deleted_total += 1
        if len(folder.deleted) > self._tombstones:
            folder.pruned_change = folder.deleted.pop(next(iter(folder.deleted))).changed

    def _changed(self, obj: Item | Folder, now: float) -> None:
        self.changes += 1
        obj.changed = self.changes
        obj.modified = now

    def _changed_item(self, item: Item, now: float, *, flag_only: bool = False) -> None:
        self._changed(item, now)
        item.history.append(item.changed)
        item.folder.committed = now
        if not flag_only:
            item.edited = item.changed

    def _change_properties(self, folder: Folder, now: float) -> None:
        self._changed(folder, now)
        folder.properties_changed = folder.changed

    def _folder_modified(self, folder: Folder, now: float) -> Event:
        """Return the event for a folder whose content changed."""
        self._changed(folder, now)
        return self._event("ModifiedEvent", folder, now, unread_count=folder.unread)

    def _parent(self, folder: Folder) -> Folder:
        return folder.parent or folder

    def _event(
        self,
        kind: str,
        obj: Item | Folder,
        now: float,
        *,
        old_id: str | None = None,
        old_change_key: str | None = None,
        old_parent: Folder | None = None,
        unread_count: int | None = None,
    ) -> Event:
        is_item = isinstance(obj, Item)
        parent = obj.folder if isinstance(obj, Item) else self._parent(obj)
        return Event(
            kind=kind,
            mailbox=self.address,
            time=now,
            item_id=obj.id if is_item else None,
            folder_id=None if is_item else obj.id,
            change_key=self.change_key(obj),
            parent_folder_id=parent.id,
            parent_change_key=self.change_key(parent),
            old_id=old_id,
            old_change_key=old_change_key,
            old_parent_folder_id=old_parent.id if old_parent else None,
            old_parent_change_key=self.change_key(old_parent) if old_parent else None,
            unread_count=unread_count,
        )


def _newest(folder: Folder) -> Iterator[Item]:
    return reversed(folder.items.values())
