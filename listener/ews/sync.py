"""SyncFolderItems and SyncFolderHierarchy (MS-OXWSSYNC): what changed since a state that the server gave before.

A state is opaque, belongs to one folder (or to the hierarchy below one), and may be large. Without a state the server
tells all that there is, as created. It may come to know a state no longer: then it says `ErrorInvalidSyncStateData`,
whose verdict is RESYNC, or silently tells all that there is.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
from lxml import etree

from listener.ews.batch import flag, read_all, unexpected
from listener.ews.folders import Folder, folder_fields, folder_shape
from listener.ews.items import Item, ItemProperty, item_fields, item_shape
from listener.ews.soap import Impersonation, build, child, child_text, envelope, only_message
from listener.ews.subscription import FolderRef
from listener.ews.xml import local_name

_T = TypeVar("_T")

MAX_CHANGES = 512
"""The most that one SyncFolderItems returns (MaxSyncChangesReturnedType)."""


class SyncScope(StrEnum):
    """Whether associated items, which hold settings and the like, are items too."""

    NORMAL = "NormalItems"
    NORMAL_AND_ASSOCIATED = "NormalAndAssociatedItems"


class ChangeKind(StrEnum):
    """What happened, under its wire name. READ_FLAG is of items alone."""

    CREATE = "Create"
    UPDATE = "Update"
    DELETE = "Delete"
    READ_FLAG = "ReadFlagChange"


class Change(Item, frozen=True, gc=False, kw_only=True):
    """An item of the folder as it is now, and what happened to it since the state that was sent.

    Of one that was deleted there is only the id, of a changed read flag the id and `is_read`. An item that was
    moved away is deleted here, and created in the other folder under another id.
    """

    kind: ChangeKind


class FolderChange(Folder, frozen=True, gc=False, kw_only=True):
    """A folder as it is now, and what happened to it since the state that was sent. Of one that was deleted there
    is only the id."""

    kind: ChangeKind


class ItemChanges(msgspec.Struct, frozen=True):
    """Changes of a folder's items, in the server's order. The rest is told for `sync_state`, unless
    `includes_last`."""

    sync_state: str
    includes_last: bool
    changes: tuple[Change, ...] = ()


class FolderChanges(msgspec.Struct, frozen=True):
    """Changes of the folders below one, as in ItemChanges."""

    sync_state: str
    includes_last: bool
    changes: tuple[FolderChange, ...] = ()


# --- items


def sync_folder_items(
    folder: FolderRef,
    *,
    sync_state: str | None = None,
    properties: Iterable[ItemProperty] = (),
    ignore: Sequence[str] = (),
    max_changes: int = MAX_CHANGES,
    scope: SyncScope | None = None,
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """A SyncFolderItems for the next changes of the items in this folder, at most `max_changes`.

    The ids come, and those `properties`. Items whose ids are in `ignore` are left out. `scope` None means normal
    items. ValueError: `max_changes` is not 1 to 512.
    """
    if not 1 <= max_changes <= MAX_CHANGES:
        raise ValueError(f"MaxChangesReturned is 1 to {MAX_CHANGES}, not {max_changes}")
    request = _request(
        "m:SyncFolderItems", item_shape(map(ItemProperty, properties)), folder=folder, sync_state=sync_state
    )
    if ignore:
        request.append(build("m:Ignore", *(build("t:ItemId", Id=item_id) for item_id in ignore)))
    request.append(build("m:MaxChangesReturned", str(max_changes)))
    if scope is not None:
        request.append(build("m:SyncScope", SyncScope(scope)))
    return envelope(request, version=version, impersonate=impersonate)


def read_sync_folder_items(content: bytes) -> ItemChanges:
    """The changes that are told. Raises ExchangeError."""
    return ItemChanges(*_read(content, "IncludesLastItemInRange", _read_change))


def _read_change(element: etree._Element) -> Change | None:
    kind, fields = _read_kind(element, item_fields)
    return None if fields is None else Change(kind=kind, **fields)


# --- folders


def sync_folder_hierarchy(
    folder: FolderRef | None = None,
    *,
    sync_state: str | None = None,
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """A SyncFolderHierarchy for the next changes of the folders at any depth below this one (None: in the whole
    mailbox that asks)."""
    request = _request("m:SyncFolderHierarchy", folder_shape(), folder=folder, sync_state=sync_state)
    return envelope(request, version=version, impersonate=impersonate)


def read_sync_folder_hierarchy(content: bytes) -> FolderChanges:
    """The changes that are told. Raises ExchangeError."""
    return FolderChanges(*_read(content, "IncludesLastFolderInRange", _read_folder_change))


def _read_folder_change(element: etree._Element) -> FolderChange | None:
    kind, fields = _read_kind(element, folder_fields)
    return None if fields is None else FolderChange(kind=kind, **fields)


# --- both


def _request(
    name: str, shape: etree._Element, *, folder: FolderRef | None, sync_state: str | None
) -> etree._Element:
    request = build(name, shape)
    if folder is not None:
        request.append(build("m:SyncFolderId", folder.to_element()))
    if sync_state:
        request.append(build("m:SyncState", sync_state))
    return request


def _read(
    content: bytes, last: str, read: Callable[[etree._Element], _T | None]
) -> tuple[str, bool, tuple[_T, ...]]:
    """State, whether all is told, and the changes; kinds that are unknown are passed over.

    Whether all is told may stand nowhere: then only a reply without changes is the last.
    """
    message = only_message(content)
    sync_state = child_text(message, "SyncState")
    if not sync_state:
        raise unexpected(f"{local_name(message)} without a SyncState")
    told = child(message, "Changes")
    changes = read_all((() if told is None else filter(_is_known, told)), read)
    includes_last = flag(child_text(message, last))
    return sync_state, not changes if includes_last is None else includes_last, changes


def _is_known(change: etree._Element) -> bool:
    return local_name(change) in _KINDS


_KINDS = frozenset(ChangeKind)


def _read_kind(
    change: etree._Element, fields_of: Callable[[etree._Element], dict[str, Any] | None]
) -> tuple[ChangeKind, dict[str, Any] | None]:
    """The kind, and the fields of what changed; None if it has no id.

    The id stands in the change itself, or in an element that is named for the kind of item or folder.
    """
    kind = ChangeKind(local_name(change))
    if fields := fields_of(change):
        return kind, {**fields, "element": None}
    return kind, next(filter(None, map(fields_of, change)), None)
