"""SyncFolderItems and SyncFolderHierarchy (MS-OXWSSYNC): changes since a sync state of the server.

A sync state is opaque, belongs to one folder (or to the hierarchy below one), and may be large. Without a state, the
server returns everything as created. If the server no longer knows a state, it returns `ErrorInvalidSyncStateData`,
whose verdict is RESYNC, or silently returns everything.
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
"""Maximum changes of one SyncFolderItems (MaxSyncChangesReturnedType)."""


class SyncScope(StrEnum):
    """Selects normal items, or also associated items, which contain settings and similar data."""

    NORMAL = "NormalItems"
    NORMAL_AND_ASSOCIATED = "NormalAndAssociatedItems"


class ChangeKind(StrEnum):
    """The kind of change, with its name in EWS. READ_FLAG applies only to items."""

    CREATE = "Create"
    UPDATE = "Update"
    DELETE = "Delete"
    READ_FLAG = "ReadFlagChange"


class Change(Item, frozen=True, gc=False, kw_only=True):
    """The current state of an item in the folder, and its change since the sync state of the request.

    A deleted item has only its id. A changed read flag has the id and `is_read`. An item that was moved to another
    folder is deleted here, and created there with another id.
    """

    kind: ChangeKind


class FolderChange(Folder, frozen=True, gc=False, kw_only=True):
    """The current state of a folder, and its change since the sync state of the request.

    A deleted folder has only its id.
    """

    kind: ChangeKind


class ItemChanges(msgspec.Struct, frozen=True):
    """Changes of a folder's items, in the server's order.

    Unless `includes_last` is true, request further changes with `sync_state`.
    """

    sync_state: str
    includes_last: bool
    changes: tuple[Change, ...] = ()


class FolderChanges(msgspec.Struct, frozen=True):
    """Changes of the folders below a folder, as in ItemChanges."""

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
    """Return a SyncFolderItems request for the next changes of the items in this folder, at most `max_changes`.

    The reply has the ids and the `properties`, without items whose ids are in `ignore`. `scope` None means normal
    items. Raises ValueError if `max_changes` is not 1 to 512.
    """
    if not 1 <= max_changes <= MAX_CHANGES:
        raise ValueError(f"MaxChangesReturned must be 1 to {MAX_CHANGES}, not {max_changes}")
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
    """Return the changes. Raises ExchangeError."""
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
    """Return a SyncFolderHierarchy request for the next changes of the folders at any depth below this folder.

    None means all folders of the mailbox.
    """
    request = _request("m:SyncFolderHierarchy", folder_shape(), folder=folder, sync_state=sync_state)
    return envelope(request, version=version, impersonate=impersonate)


def read_sync_folder_hierarchy(content: bytes) -> FolderChanges:
    """Return the changes. Raises ExchangeError."""
    return FolderChanges(*_read(content, "IncludesLastFolderInRange", _read_folder_change))


def _read_folder_change(element: etree._Element) -> FolderChange | None:
    kind, fields = _read_kind(element, folder_fields)
    return None if fields is None else FolderChange(kind=kind, **fields)


# --- shared


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
    """Return the sync state, whether this is the last part, and the changes. Unknown kinds are ignored.

    `last` is the element for the last part. If it is missing, only a reply without changes is the last part.
    """
    message = only_message(content)
    sync_state = child_text(message, "SyncState")
    if not sync_state:
        raise unexpected(f"{local_name(message)} without a SyncState")
    container = child(message, "Changes")
    changes = read_all((() if container is None else filter(_is_known, container)), read)
    includes_last = flag(child_text(message, last))
    return sync_state, not changes if includes_last is None else includes_last, changes


def _is_known(change: etree._Element) -> bool:
    return local_name(change) in _KINDS


_KINDS = frozenset(ChangeKind)


def _read_kind(
    change: etree._Element, fields_of: Callable[[etree._Element], dict[str, Any] | None]
) -> tuple[ChangeKind, dict[str, Any] | None]:
    """Return the kind of change, and the fields of the item or folder; None if it has no id.

    The id is in the change element itself, or in an element that is named after the kind of item or folder.
    """
    kind = ChangeKind(local_name(change))
    if fields := fields_of(change):
        return kind, {**fields, "element": None}
    return kind, next(filter(None, map(fields_of, change)), None)
