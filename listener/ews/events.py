"""Notifications and their events (MS-OXWSNTIF 2.2.4, MS-OXWSCDATA NotificationType)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
from lxml import etree

from listener.event import MailboxEvent
from listener.ews.soap import MESSAGES, TYPES, text
from listener.ews.values import identifier, integer, utc

_T = TypeVar("_T")


class EventKind(StrEnum):
    """The event types of a subscription, with their names in EWS."""

    COPIED = "CopiedEvent"
    CREATED = "CreatedEvent"
    DELETED = "DeletedEvent"
    MODIFIED = "ModifiedEvent"
    MOVED = "MovedEvent"
    NEW_MAIL = "NewMailEvent"
    FREE_BUSY_CHANGED = "FreeBusyChangedEvent"


class Event(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One event of a notification.

    It has an `item_id` or a `folder_id`. `change_key` is that of this item or folder. `timestamp` is RFC 3339 in UTC
    with the fractional digits (0 to 9) of the server, empty without a valid time. Missing values are None.
    """

    kind: EventKind
    timestamp: str = ""
    item_id: str | None = None
    folder_id: str | None = None
    change_key: str | None = None
    parent_folder_id: str | None = None
    old_item_id: str | None = None
    old_folder_id: str | None = None
    old_parent_folder_id: str | None = None
    unread_count: int | None = None


class Notification(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Events of one subscription, in the order of the server. With `more_events`, more follow immediately.

    `dropped` counts events without a valid id, whose item or folder is unknown. An id that is blank or longer than
    ID_LENGTH is not valid. `subscription_id` is empty if the server sent none.
    """

    subscription_id: str
    events: tuple[Event, ...] = ()
    dropped: int = 0
    more_events: bool = False
    previous_watermark: str | None = None


def read_notification(element: etree._Element) -> Notification:
    """Return a Notification for its element. Unknown elements and StatusEvent are ignored."""
    subscription_id = ""
    watermark = None
    more = False
    events = []
    dropped = 0
    for part in element:
        name = _PARTS.get(part.tag)
        if isinstance(name, EventKind):
            if (event := _read_event(name, part)) is None:
                dropped += 1
            else:
                events.append(event)
        elif name == "SubscriptionId":
            subscription_id = identifier(text(part)) or ""
        elif name == "MoreEvents":
            more = text(part) in ("true", "1")
        elif name == "PreviousWatermark":
            watermark = identifier(text(part))
    return Notification(
        subscription_id=subscription_id,
        events=tuple(events),
        dropped=dropped,
        more_events=more,
        previous_watermark=watermark,
    )


def _read_event(kind: EventKind, element: etree._Element) -> Event | None:
    """Return the event; None if it has no valid id.

    The schema allows an ItemId or a FolderId. With both, the event is about the item: a blank item id must not turn
    an item event into a folder event.
    """
    fields: dict[str, Any] = {"kind": kind}
    own: dict[str, tuple[str | None, str | None]] = {}
    for part in element:
        field = _FIELDS.get(part.tag)
        if field == "timestamp":
            fields[field] = _time(text(part))
        elif field == "unread_count":
            fields[field] = integer(text(part))
        elif field == "item_id" or field == "folder_id":
            own.setdefault(field, (identifier(part.get("Id")), identifier(part.get("ChangeKey"))))
        elif field is not None:
            fields[field] = identifier(part.get("Id"))
    which = "item_id" if "item_id" in own else "folder_id"
    id_, change_key = own.get(which, (None, None))
    if id_ is None:
        return None
    return Event(**fields, **{which: id_}, change_key=change_key)  # type: ignore[arg-type]  # mypy: all of one type


def _time(text: str) -> str:
    """Return a timestamp; empty if it is invalid or the zero value of .NET (0001) or Windows (1601)."""
    time = utc(text)
    return "" if time.startswith(("0001-", "1601-")) else time


def _by_tag(names: Mapping[str, _T]) -> dict[str, _T]:
    """Return a lookup table by full tag, for all namespaces. This is faster than splitting each tag."""
    return {
        prefix + name: of for name, of in names.items() for prefix in (f"{{{TYPES}}}", f"{{{MESSAGES}}}", "")
    }


_PARTS: dict[str, str] = _by_tag(
    {name: name for name in ("SubscriptionId", "MoreEvents", "PreviousWatermark")}
    | {kind.value: kind for kind in EventKind}
)
_FIELDS = _by_tag(
    {
        "TimeStamp": "timestamp",
        "ItemId": "item_id",
        "FolderId": "folder_id",
        "ParentFolderId": "parent_folder_id",
        "UnreadCount": "unread_count",
        "OldItemId": "old_item_id",
        "OldFolderId": "old_folder_id",
        "OldParentFolderId": "old_parent_folder_id",
    }
)

# --- events for handlers


def mailbox_event(mailbox: str, event: Event, arrived: str = "") -> MailboxEvent:
    """Return the event for handlers. `arrived` is its time if the server sent none."""
    return MailboxEvent(
        type=(_FOLDER_TYPES if event.item_id is None else _ITEM_TYPES)[event.kind],
        mailbox=mailbox,
        time=event.timestamp or arrived,
        item_id=event.item_id,
        folder_id=event.folder_id,
        change_key=event.change_key,
        parent_folder_id=event.parent_folder_id,
        old_item_id=event.old_item_id,
        old_folder_id=event.old_folder_id,
        old_parent_folder_id=event.old_parent_folder_id,
        unread_count=event.unread_count,
    )


_ITEM_TYPES = {kind: f"exchange.item.{kind.name.lower()}" for kind in EventKind}
_FOLDER_TYPES = {kind: f"exchange.folder.{kind.name.lower()}" for kind in EventKind}

EVENT_TYPES: tuple[str, ...] = (*_ITEM_TYPES.values(), *_FOLDER_TYPES.values())
"""The CloudEvents types of all events that Exchange reports."""
