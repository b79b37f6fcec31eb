"""FindItem and GetItem (MS-OXWSSRCH, MS-OXWSCORE): items changed since a given time, and properties of items."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
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
    read_flag,
    read_id,
    read_page,
    read_properties,
    read_text,
    read_time,
    shape,
)
from listener.ews.codes import Failure
from listener.ews.soap import Impersonation, build, child, envelope
from listener.ews.subscription import FolderRef
from listener.ews.values import moment


class ItemProperty(StrEnum):
    """Optional properties by their FieldURI. Items of a kind without the property are returned without it."""

    PARENT_FOLDER_ID = "item:ParentFolderId"
    ITEM_CLASS = "item:ItemClass"
    SUBJECT = "item:Subject"
    DATE_TIME_CREATED = "item:DateTimeCreated"
    DATE_TIME_RECEIVED = "item:DateTimeReceived"
    LAST_MODIFIED_TIME = "item:LastModifiedTime"
    IS_READ = "message:IsRead"


class Item(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The current state of an item. Values that were not requested or not returned are None.

    `element` is the server's element: Message, CalendarItem, Contact, MeetingRequest, … or Item. Times are RFC 3339
    in UTC with the fractional digits of the server; Exchange sends none.
    """

    item_id: str
    change_key: str | None = None
    element: str | None = None
    parent_folder_id: str | None = None
    item_class: str | None = None
    subject: str | None = None
    date_time_created: str | None = None
    date_time_received: str | None = None
    last_modified_time: str | None = None
    is_read: bool | None = None


# --- FindItem


def find_item(
    folder: FolderRef,
    *,
    since: datetime | None = None,
    offset: int = 0,
    page_size: int = MAX_PAGE,
    properties: Iterable[ItemProperty] = (),
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """Return a FindItem request for a page of the items that were modified at `since` or later (None: of all items).

    The order is by LastModifiedTime, oldest first. This property is always requested. `since` must be aware; its
    fraction of a second is dropped. Raises ValueError if `page_size` is not 1 to 1000, or `since` is naive.
    """
    wanted = dict.fromkeys((ItemProperty.LAST_MODIFIED_TIME, *map(ItemProperty, properties)))
    request = build(
        "m:FindItem",
        item_shape(wanted),
        page_view("m:IndexedPageItemView", offset, page_size),
        Traversal="Shallow",
    )
    if since is not None:
        request.append(build("m:Restriction", _modified_since(since)))
    order = build("t:FieldOrder", field(ItemProperty.LAST_MODIFIED_TIME), Order="Ascending")
    request.append(build("m:SortOrder", order))
    request.append(build("m:ParentFolderIds", folder.to_element()))
    return envelope(request, version=version, impersonate=impersonate)


def _modified_since(since: datetime) -> etree._Element:
    if since.tzinfo is None:
        raise ValueError("`since` has no time zone")
    time = f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    constant = build("t:FieldURIOrConstant", build("t:Constant", Value=time))
    return build("t:IsGreaterThanOrEqualTo", field(ItemProperty.LAST_MODIFIED_TIME), constant)


def read_find_item(content: bytes, offset: int = 0) -> Page[Item]:
    """Return a page of items. `offset` is that of the request. Raises ExchangeError."""
    return read_page(content, "Items", read_item, offset)


def next_page(page: Page[Item], since: datetime | None) -> tuple[datetime | None, int] | None:
    """Return `since` and `offset` for the next page; None after the last. `since` is that of this page.

    If possible, the next page begins at the time of the last item. This returns some items twice. With an offset,
    items would be missed: if an item leaves the folder, or is modified and moves to the end, later items move up to
    an offset that was already read. An offset is used only if all items of the page are of one second, or the
    server does not sort.
    """
    if page.next_offset is None:
        return None
    times = [moment(item.last_modified_time) for item in page.found]
    known = [time for time in times if time is not None]
    if known and len(known) == len(times) and known == sorted(known):
        last = known[-1].replace(microsecond=0)
        if since is None or last > since:
            return last, 0
    return since, page.next_offset


# --- GetItem


def get_item(
    item_ids: Sequence[str],
    *,
    properties: Iterable[ItemProperty] = (),
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """Return a GetItem request for items of one mailbox. Raises ValueError without items.

    At most ten items per request are recommended ("Best practices for EWS batch requests", learn.microsoft.com).
    """
    if not item_ids:
        raise ValueError("GetItem requires an item")
    ids = build("m:ItemIds", *(build("t:ItemId", Id=item_id) for item_id in item_ids))
    request = build("m:GetItem", item_shape(map(ItemProperty, properties)), ids)
    return envelope(request, version=version, impersonate=impersonate)


def read_get_item(content: bytes, item_ids: Sequence[str]) -> dict[str, Item | Failure]:
    """Return the answer for each of the `item_ids` of the request, in their order. ErrorItemNotFound: it is deleted.

    Raises ExchangeError if the request as a whole failed.
    """
    return read_each(content, item_ids, _first_item)


def _first_item(message: etree._Element) -> Item | None:
    items = child(message, "Items")
    return None if items is None or not len(items) else read_item(items[0])


# --- shared with SyncFolderItems


def item_shape(properties: Iterable[ItemProperty]) -> etree._Element:
    """Return an ItemShape with the id and these properties."""
    return shape("m:ItemShape", map(field, properties))


def read_item(element: etree._Element) -> Item | None:
    """Return the Item for a `t:Message`, `t:CalendarItem`, …; None if it has no ItemId."""
    fields = item_fields(element)
    return None if fields is None else Item(**fields)


def item_fields(element: etree._Element) -> dict[str, Any] | None:
    """Return the fields of an Item; None if it has no ItemId."""
    return read_properties(element, "ItemId", _PROPERTIES)


_PROPERTIES: dict[str, Property] = {
    "ItemId": ("item_id", read_id),
    "ParentFolderId": ("parent_folder_id", read_id),
    "ItemClass": ("item_class", read_text),
    "Subject": ("subject", read_text),
    "DateTimeCreated": ("date_time_created", read_time),
    "DateTimeReceived": ("date_time_received", read_time),
    "LastModifiedTime": ("last_modified_time", read_time),
    "IsRead": ("is_read", read_flag),
}
