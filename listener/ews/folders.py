"""GetFolder and FindFolder (MS-OXWSFOLD, MS-OXWSSRCH): the folders of a mailbox, and signs of changes in them.

Two properties (MS-OXPROPS) reveal a change without reading items: PidTagLocalCommitTimeMax is the time of the last
change in the folder, and PidTagDeletedCountTotal is the number of items deleted from it. A third property,
PidTagLastModificationTime, is the time of the last change of the folder itself.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from lxml import etree

from listener.ews.batch import (
    MAX_PAGE,
    Page,
    Property,
    field,
    page_view,
    read_each,
    read_id,
    read_integer,
    read_page,
    read_properties,
    read_text,
    read_time,
    shape,
)
from listener.ews.codes import Failure
from listener.ews.soap import Impersonation, build, child, envelope
from listener.ews.subscription import FolderRef

FOLDER_FIELDS = (
    "folder:DisplayName",
    "folder:ParentFolderId",
    "folder:FolderClass",
    "folder:TotalCount",
    "folder:UnreadCount",
)
_LAST_MODIFICATION_TIME = 0x3008
_COMMIT_TIME_MAX = 0x670A
_DELETED_COUNT_TOTAL = 0x670B


class Folder(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The current state of a folder. Missing values are None.

    `element` is the server's element: Folder, CalendarFolder, ContactsFolder, TasksFolder, or SearchFolder, which
    shows items of other folders. If `commit_time_max` (RFC 3339) and `deleted_count_total` are unchanged since the
    last time, the items in the folder are unchanged.
    """

    folder_id: str
    change_key: str | None = None
    parent_folder_id: str | None = None
    display_name: str | None = None
    folder_class: str | None = None
    modified_time: str | None = None
    commit_time_max: str | None = None
    deleted_count_total: int | None = None
    total_count: int | None = None
    unread_count: int | None = None
    element: str | None = None


def get_folder(
    folders: Sequence[FolderRef],
    *,
    id_only: bool = False,
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """Return a GetFolder request. Use `id_only` to test whether the folders are readable.

    Raises ValueError without folders.
    """
    if not folders:
        raise ValueError("GetFolder requires a folder")
    requested = shape("m:FolderShape", ()) if id_only else folder_shape()
    ids = build("m:FolderIds", *(folder.to_element() for folder in folders))
    return envelope(build("m:GetFolder", requested, ids), version=version, impersonate=impersonate)


def read_get_folder(content: bytes, folders: Sequence[FolderRef]) -> dict[FolderRef, Folder | Failure]:
    """Return the answer for each of the `folders` of the request, in their order.

    Raises ExchangeError if the request as a whole failed.
    """
    return read_each(content, folders, _first_folder)


def _first_folder(message: etree._Element) -> Folder | None:
    folders = child(message, "Folders")
    return None if folders is None or not len(folders) else read_folder(folders[0])


def find_folder(
    parent: FolderRef,
    *,
    offset: int = 0,
    page_size: int = MAX_PAGE,
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """Return a FindFolder request for a page of the folders at any depth below `parent`, without `parent`.

    Raises ValueError if `page_size` is not 1 to 1000.
    """
    request = build(
        "m:FindFolder",
        folder_shape(),
        page_view("m:IndexedPageFolderView", offset, page_size),
        build("m:ParentFolderIds", parent.to_element()),
        Traversal="Deep",
    )
    return envelope(request, version=version, impersonate=impersonate)


def read_find_folder(content: bytes, offset: int = 0) -> Page[Folder]:
    """Return a page of folders. `offset` is that of the request. Raises ExchangeError."""
    return read_page(content, "Folders", read_folder, offset)


# --- shared with SyncFolderHierarchy


def folder_shape() -> etree._Element:
    """Return the FolderShape with all fields of a Folder."""
    extended = (
        build("t:ExtendedFieldURI", PropertyTag=hex(tag), PropertyType=kind)
        for tag, kind in (
            (_LAST_MODIFICATION_TIME, "SystemTime"),
            (_COMMIT_TIME_MAX, "SystemTime"),
            (_DELETED_COUNT_TOTAL, "Integer"),
        )
    )
    return shape("m:FolderShape", (*map(field, FOLDER_FIELDS), *extended))


def read_folder(element: etree._Element) -> Folder | None:
    """Return the Folder for a `t:Folder`, `t:CalendarFolder`, …; None if it has no FolderId."""
    fields = folder_fields(element)
    return None if fields is None else Folder(**fields)


def folder_fields(element: etree._Element) -> dict[str, Any] | None:
    """Return the fields of a Folder; None if it has no FolderId."""
    fields = read_properties(element, "FolderId", _PROPERTIES)
    if fields is not None:
        for each in element.iterchildren("{*}ExtendedProperty"):
            path, value = child(each, "ExtendedFieldURI"), child(each, "Value")
            if path is None or value is None:
                continue
            if known := _EXTENDED.get(path.get("PropertyTag", "").lower()):
                fields[known[0]] = known[1](value)
    return fields


_PROPERTIES: dict[str, Property] = {
    "FolderId": ("folder_id", read_id),
    "ParentFolderId": ("parent_folder_id", read_id),
    "DisplayName": ("display_name", read_text),
    "FolderClass": ("folder_class", read_text),
    "TotalCount": ("total_count", read_integer),
    "UnreadCount": ("unread_count", read_integer),
}
# The schema allows hexadecimal and decimal tags.
_EXTENDED: dict[str, Property] = {
    written: read
    for tag, read in (
        (_LAST_MODIFICATION_TIME, ("modified_time", read_time)),
        (_COMMIT_TIME_MAX, ("commit_time_max", read_time)),
        (_DELETED_COUNT_TOTAL, ("deleted_count_total", read_integer)),
    )
    for written in (hex(tag), str(tag))
}
