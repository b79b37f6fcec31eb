"""SyncStates, and the changes of items and folders since a SyncState (MS-OXWSSYNC).

A SyncState of items has the change numbers of a folder that were reported to the client, as ranges: because the
newest changes come first, a client that reads page by page knows the new end before the old one. All changes of an
item since then are reported as one. Tombstones show what left a folder. If a tombstone was dropped before the client
got that change, its SyncState is invalid.

A SyncState of folders lists the folders that the client has. Changes inside a folder do not count, as
"SyncFolderHierarchy operation" (learn.microsoft.com) says.

On the wire a SyncState is base64 of a gzipped text, like that of Exchange. "Handling synchronization-related errors
in EWS in Exchange" (learn.microsoft.com) says which ones are refused.
"""

import gzip
import zlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec

from listener.simulator.mailstore import Folder, Item, Mailbox
from listener.simulator.responses import Failure

_Range = tuple[int, int]
"""The numbers above the first, up to and including the second."""


class ItemsState(msgspec.Struct, frozen=True, array_like=True, tag="items"):
    """What a client knows of the items in a folder. `seen` are disjoint ranges of change numbers, in order."""

    version: Literal[1]
    epoch: int
    folder: str
    seen: tuple[_Range, ...]


class FoldersState(msgspec.Struct, frozen=True, array_like=True, tag="folders"):
    """What a client knows of the folders below `root`.

    `root` is a folder's id, or the mailbox's GUID if the client gave none. `folders` are the counters of the
    known folders. All changes up to number `seen` were reported.
    """

    version: Literal[1]
    epoch: int
    root: str
    seen: int
    folders: tuple[int, ...]


State = TypeVar("State", ItemsState, FoldersState)


class ItemChange(NamedTuple):
    """`kind` is the element's name: Create, Update, Delete or ReadFlagChange. `item` is None for a deleted
    item."""

    kind: str
    item_id: str
    item: Item | None


class FolderChange(NamedTuple):
    """`kind` is Create, Update or Delete. `folder` is None for a deleted folder."""

    kind: str
    folder_id: str
    folder: Folder | None


def encode(state: ItemsState | FoldersState) -> str:
    """Return the SyncState in its form for clients."""
    return b64encode(gzip.compress(msgspec.json.encode(state), mtime=0)).decode()


def decode(text: str, kind: type[State]) -> State:
    """Decode a SyncState. Raises Failure if it is not one of that kind and version."""
    try:
        return msgspec.json.decode(gzip.decompress(b64decode(text, validate=True)), type=kind)
    except (ValueError, OSError, EOFError, zlib.error):
        raise _invalid() from None


# -- items ---------------------------------------------------------------------------------------------------


def item_changes(
    mailbox: Mailbox, folder: Folder, state: ItemsState | None, limit: int, ignored: Collection[str] = ()
) -> tuple[list[ItemChange], ItemsState, bool]:
    """Return the changes in a folder since that state, newest first, at most `limit`; the new state; whether
    that is all.

    Without a state, every item is a change. Items in `ignored` (ids) are treated as known. Raises Failure if
    the state is of another folder or too old.
    """
    if state and state.folder != folder.id:
        raise _invalid()
    seen = state.seen if state and _is_valid(mailbox, state) else ()
    if seen and folder.pruned_change > seen[0][1]:
        raise _invalid()
    found = [*_present_changes(folder, seen), *_deletions(folder, seen)]
    found = [each for each in found if each[1].item_id not in ignored]
    found.sort(key=lambda each: each[0], reverse=True)
    page = found[:limit]
    last = len(page) == len(found)
    reported = (0 if last else page[-1][0] - 1, mailbox.changes)
    after = ItemsState(1, mailbox.sync_epoch, folder.id, _add_range(seen, reported))
    return [change for _, change in page], after, last


def _present_changes(folder: Folder, seen: Sequence[_Range]) -> list[tuple[int, ItemChange]]:
    found = []
    for item in folder.items.values():
        if _contains(seen, item.changed):
            continue
        known = _known(seen, item.history)
        if known is None:
            kind = "Create"
        elif item.edited <= known:
            kind = "ReadFlagChange"
        else:
            kind = "Update"
        found.append((item.changed, ItemChange(kind, item.id, item)))
    return found


def _deletions(folder: Folder, seen: Sequence[_Range]) -> list[tuple[int, ItemChange]]:
    return [
        (tombstone.changed, ItemChange("Delete", item_id, None))
        for item_id, tombstone in folder.deleted.items()
        if not _contains(seen, tombstone.changed) and _known(seen, tombstone.history) is not None
    ]


def _known(seen: Sequence[_Range], history: Sequence[int]) -> int | None:
    """Return the last change of an item that the client knows, or None if it does not know the item."""
    return next((number for number in reversed(history) if _contains(seen, number)), None)


def _contains(ranges: Sequence[_Range], number: int) -> bool:
    return any(after < number <= last for after, last in ranges)


def _add_range(ranges: Sequence[_Range], new: _Range) -> tuple[_Range, ...]:
    """Return the ranges with a new one, which ends above all of them."""
    disjoint = [each for each in ranges if each[1] < new[0]]
    overlapping = [each[0] for each in ranges if each[1] >= new[0]]
    return (*disjoint, (min([new[0], *overlapping]), new[1]))


# -- folders -------------------------------------------------------------------------------------------------


def folder_changes(
    mailbox: Mailbox, root: Folder | None, state: FoldersState | None
) -> tuple[list[FolderChange], FoldersState]:
    """Return the changes below a folder since that state, parents before children, and the new state.

    Without a state, every folder is a change. Raises Failure if the state is of another root.
    """
    root_id = root.id if root else str(mailbox.guid)
    if state and state.root != root_id:
        raise _invalid()
    if state and not _is_valid(mailbox, state):
        state = None
    present = mailbox.below(root or mailbox.distinguished("root"))
    given = frozenset(state.folders if state else ())
    changes = []
    for folder in present:
        if folder.counter not in given:
            changes.append(FolderChange("Create", folder.id, folder))
        elif state and folder.properties_changed > state.seen:
            changes.append(FolderChange("Update", folder.id, folder))
    counters = tuple(folder.counter for folder in present)
    gone = sorted(given.difference(counters))
    changes += [FolderChange("Delete", mailbox.folder_id(counter), None) for counter in gone]
    return changes, FoldersState(1, mailbox.sync_epoch, root_id, mailbox.changes, counters)


def _is_valid(mailbox: Mailbox, state: ItemsState | FoldersState) -> bool:
    """Return whether the state is still valid. Raises Failure if it is not and the client must get an error."""
    if state.epoch == mailbox.sync_epoch:
        return True
    if mailbox.sync_loss_is_silent:
        return False
    raise _invalid()


def _invalid() -> Failure:
    return Failure("ErrorInvalidSyncStateData")
