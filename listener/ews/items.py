"""FindItem and GetItem (MS-OXWSSRCH, MS-OXWSCORE): what was changed since a moment, and what an item is like now."""

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
    """What can be asked for beside the id, under its FieldURI. An item of a kind that lacks it comes without."""

    PARENT_FOLDER_ID = "item:ParentFolderId"
    ITEM_CLASS = "item:ItemClass"
    SUBJECT = "item:Subject"
    DATE_TIME_CREATED = "item:DateTimeCreated"
    DATE_TIME_RECEIVED = "item:DateTimeReceived"
    LAST_MODIFIED_TIME = "item:LastModifiedTime"
    IS_READ = "message:IsRead"


class Item(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An item as it is at this moment; what was not asked for or not told is None.

    `element` is how the server calls it: Message, CalendarItem, Contact, MeetingRequest, … or Item. Times are RFC
    3339 in UTC with as many fractional digits as were sent, which is none in Exchange.
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
    """A FindItem for a page of the items in this folder that were last modified at `since` or later (None: of all
    of them), those modified first to come first.

    `since` must be aware; its fraction of a second is cut off. LastModifiedTime is always among the properties.
    ValueError: a page holds 1 to 1000, or `since` is naive.
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


def _modified_since(moment: datetime) -> etree._Element:
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone")
    time = f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    constant = build("t:FieldURIOrConstant", build("t:Constant", Value=time))
    return build("t:IsGreaterThanOrEqualTo", field(ItemProperty.LAST_MODIFIED_TIME), constant)


def read_find_item(content: bytes, offset: int = 0) -> Page[Item]:
    """A page of items; `offset` is that of the request. Raises ExchangeError."""
    return read_page(content, "Items", read_item, offset)


def next_page(page: Page[Item], since: datetime | None) -> tuple[datetime | None, int] | None:
    """The `since` and `offset` to ask with for what follows this page, got with this `since`; None after the last.

    Where it can, it goes on from the time of the last item: that brings some items twice, but an item that leaves
    the folder meanwhile, or is modified and so goes to the end, moves others past an offset, where nobody would
    see them. It cannot where a whole page is of one second, or the server does not sort.
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
    """A GetItem for these items, of one mailbox. ValueError if there are none.

    Not more than ten a request are recommended ("Best practices for EWS batch requests", learn.microsoft.com).
    """
    if not item_ids:
        raise ValueError("a GetItem of no items")
    ids = build("m:ItemIds", *(build("t:ItemId", Id=item_id) for item_id in item_ids))
    request = build("m:GetItem", item_shape(map(ItemProperty, properties)), ids)
    return envelope(request, version=version, impersonate=impersonate)


def read_get_item(content: bytes, item_ids: Sequence[str]) -> dict[str, Item | Failure]:
    """What is told of each of the `item_ids` of the request, in their order. ErrorItemNotFound: it is gone.

    Raises ExchangeError if the request as a whole came to nothing.
    """
    return read_each(content, item_ids, _first_item)


def _first_item(message: etree._Element) -> Item | None:
    items = child(message, "Items")
    return None if items is None or not len(items) else read_item(items[0])


# --- for these operations and for SyncFolderItems


def item_shape(properties: Iterable[ItemProperty]) -> etree._Element:
    """Ids, and these properties."""
    return shape("m:ItemShape", map(field, properties))


def read_item(element: etree._Element) -> Item | None:
    """A `t:Message`, `t:CalendarItem`, … as a value; None if it has no ItemId."""
    fields = item_fields(element)
    return None if fields is None else Item(**fields)


def item_fields(element: etree._Element) -> dict[str, Any] | None:
    """The fields of an Item; None if it has no ItemId."""
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
