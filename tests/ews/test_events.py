"""Notifications, and their events for handlers."""

import re
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from listener.event import MailboxEvent
from listener.ews.events import EVENT_TYPES, Event, EventKind, Notification, mailbox_event, read_notification
from listener.ews.values import utc
from tests.ews.samples import MESSAGES, TYPES, event, notification


def read(*events: str) -> Notification:
    content = notification("sub", *events)
    return read_notification(etree.fromstring(f'<x xmlns:m="{MESSAGES}" xmlns:t="{TYPES}">{content}</x>')[0])


def one(xml: str) -> Event:
    (found,) = read(xml).events
    return found


def test_modified_folder() -> None:
    xml = event("ModifiedEvent", FolderId="f", ChangeKey="k", ParentFolderId="p", UnreadCount=7)
    assert one(xml) == Event(
        kind=EventKind.MODIFIED,
        timestamp="2024-05-14T09:30:05Z",
        folder_id="f",
        change_key="k",
        parent_folder_id="p",
        unread_count=7,
    )


def test_change_key_is_that_of_the_item() -> None:
    xml = (
        "<t:MovedEvent><t:Watermark>w</t:Watermark><t:TimeStamp>2024-05-14T09:30:05Z</t:TimeStamp>"
        '<t:ItemId Id="i" ChangeKey="k"/><t:ParentFolderId Id="p" ChangeKey="pk"/>'
        '<t:OldItemId Id="oi" ChangeKey="ok"/><t:OldParentFolderId Id="op" ChangeKey="opk"/></t:MovedEvent>'
    )
    assert one(xml) == Event(
        kind=EventKind.MOVED,
        timestamp="2024-05-14T09:30:05Z",
        item_id="i",
        change_key="k",
        parent_folder_id="p",
        old_item_id="oi",
        old_parent_folder_id="op",
    )


def test_copied_folder() -> None:
    found = one(
        event("CopiedEvent", FolderId="f", ParentFolderId="p", OldFolderId="of", OldParentFolderId="op")
    )
    assert (found.old_folder_id, found.old_item_id, found.old_parent_folder_id) == ("of", None, "op")


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ("2024-05-14T09:30:05Z", "2024-05-14T09:30:05Z"),
        ("2024-05-14T09:30:05.1234567Z", "2024-05-14T09:30:05.1234567Z"),
        ("2024-05-14T09:30:05.123456789", "2024-05-14T09:30:05.123456789Z"),
        ("2024-05-14T09:30:05", "2024-05-14T09:30:05Z"),
        (" \n2024-05-14T09:30:05Z\n", "2024-05-14T09:30:05Z"),
        ("2024-05-14T01:30:05.50+02:00", "2024-05-13T23:30:05.50Z"),
        ("2024-12-31T23:30:00-01:00", "2025-01-01T00:30:00Z"),
        ("2024-05-14T09:30:05+00:00", "2024-05-14T09:30:05Z"),
        ("2024-02-29T23:59:59.1-14:00", "2024-03-01T13:59:59.1Z"),
        ("2024-05-14T09:30:05.1234567891234Z", "2024-05-14T09:30:05.123456789Z"),
        ("0800-01-01T00:00:00+01:00", "0799-12-31T23:00:00Z"),
        ("0001-01-01T00:00:00+01:00", ""),  # before the first year of the calendar
        ("9999-12-31T23:59:59Z", ""),
        ("9999-12-31T23:59:59-01:00", ""),
        ("0001-01-01T00:00:00", ""),
        ("0001-01-01T00:00:00Z", ""),
        ("1601-01-01T00:00:00Z", ""),
        ("0000-01-01T00:00:00Z", ""),
        ("2024-02-30T09:30:05Z", ""),
        ("2023-02-29T09:30:05Z", ""),
        ("2024-13-01T09:30:05Z", ""),
        ("2024-05-14T25:30:05Z", ""),
        ("2024-05-14T09:30:60Z", ""),
        ("2024-05-14T09:30:05+14:60", ""),
        ("2024-05-14T09:30:05+25:00", ""),
        ("2024-05-14T09:30:05.Z", ""),
        ("2024-05-14 09:30:05Z", ""),
        ("2024-05-14T09:30Z", ""),
        ("2024-05-14", ""),
        ("2024-05-14T09:30:05 Z", ""),
        ("\u0662\u0660\u0662\u0664-05-14T09:30:05Z", ""),
        ("Z", ""),
        ("yesterday", ""),
        ("yesterday, at noon Z", ""),
        (" ", ""),
        ("", ""),
    ],
)
def test_timestamps_are_utc_with_all_digits(sent: str, got: str) -> None:
    assert one(event("CreatedEvent", sent, ItemId="i")).timestamp == got


@given(st.text(st.sampled_from("0123456789-:TZ.+ ")) | st.text() | st.datetimes().map(str))
def test_any_timestamp_is_rfc_3339_or_empty(sent: str) -> None:
    time = utc(sent.strip())
    if time:
        assert re.fullmatch(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}([.][0-9]{1,9})?Z", time)
        datetime.fromisoformat(time)
        assert utc(time) == time


@given(st.datetimes(datetime(1, 1, 3), datetime(9998, 12, 30)), st.integers(-14 * 60 + 1, 14 * 60 - 1))
def test_every_datetime_is_a_valid_time(moment: datetime, minutes: int) -> None:
    sent = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert datetime.fromisoformat(utc(sent.isoformat())) == sent


VALID = '<t:ParentFolderId Id="p"/>'
TIME = "<t:TimeStamp>2024-05-14T09:30:05Z</t:TimeStamp>"


@pytest.mark.parametrize("kind", list(EventKind))
@pytest.mark.parametrize(
    "content",
    [
        "",
        "<t:ItemId/>",
        '<t:ItemId Id=""/>',
        '<t:ItemId Id=" &#9;&#10;"/>',
        '<t:FolderId Id=""/>',
        '<t:FolderId ChangeKey="k"/>',
        '<t:ItemId Id=""/><t:FolderId Id="f"/>',  # must remain an item event
        '<t:FolderId Id="f"/><t:ItemId/>',
        f'<t:ItemId Id="{"x" * 5000}"/>',
        '<t:OldItemId Id="o"/><t:OldFolderId Id="o"/>',
        "<t:ItemId>i</t:ItemId>",
        '<t:Itemid Id="i"/>',
    ],
)
def test_event_without_a_valid_id_is_counted(kind: EventKind, content: str) -> None:
    bad = f"<t:{kind}>{TIME}{content}{VALID}</t:{kind}>"
    good = event("CreatedEvent", ItemId="i", ParentFolderId="p")
    found = read(good, bad, good, bad)
    assert (len(found.events), found.dropped) == (2, 2)


def test_event_with_item_and_folder_ids_is_about_the_item() -> None:
    item, folder = '<t:ItemId Id="i" ChangeKey="ik"/>', '<t:FolderId Id="f" ChangeKey="fk"/>'
    for ids in (item + folder, folder + item):
        found = one(f"<t:ModifiedEvent>{TIME}{ids}{VALID}</t:ModifiedEvent>")
        assert (found.item_id, found.folder_id, found.change_key) == ("i", None, "ik")


def test_event_without_parent_and_old_ids() -> None:
    for parent in ("", "<t:ParentFolderId/>", '<t:ParentFolderId Id=" "/>'):
        content = f'<t:MovedEvent>{TIME}<t:ItemId Id="i"/>{parent}<t:OldItemId Id=""/></t:MovedEvent>'
        found = one(content)
        assert (found.item_id, found.parent_folder_id, found.old_item_id) == ("i", None, None)


@pytest.mark.parametrize(
    "sent", ["", " ", "<t:SubscriptionId/>", f"<t:SubscriptionId>{'x' * 5000}</t:SubscriptionId>"]
)
def test_notification_without_a_subscription_id(sent: str) -> None:
    content = event("CreatedEvent", ItemId="i")
    xml = f'<m:Notification xmlns:m="{MESSAGES}" xmlns:t="{TYPES}">{sent}{content}</m:Notification>'
    assert read_notification(etree.fromstring(xml)).subscription_id == ""


@pytest.mark.parametrize("sent", ["", "yesterday", "2024-02-30T00:00:00Z", "0001-01-01T00:00:00"])
def test_arrival_time_replaces_an_invalid_timestamp(sent: str) -> None:
    found = one(event("CreatedEvent", sent, ItemId="i"))
    arrived = "2024-05-14T09:30:05.000001Z"
    assert mailbox_event("a@b.c", found, arrived).time == arrived
    assert (
        mailbox_event("a@b.c", one(event("CreatedEvent", ItemId="i")), arrived).time == "2024-05-14T09:30:05Z"
    )


@pytest.mark.parametrize(
    ("sent", "got"), [("12", 12), (" -1\n", -1), ("", None), ("many", None), ("9" * 5000, None)]
)
def test_unread_counts(sent: str, got: int | None) -> None:
    assert one(event("ModifiedEvent", FolderId="f", UnreadCount=sent)).unread_count == got


def test_notification_with_all_parts() -> None:
    content = (
        f'<t:Notification xmlns:t="{TYPES}"><t:SubscriptionId> sub </t:SubscriptionId>'
        "<t:PreviousWatermark>AQAA</t:PreviousWatermark><t:MoreEvents>1</t:MoreEvents>"
        "<t:StatusEvent><t:Watermark>AQAB</t:Watermark></t:StatusEvent></t:Notification>"
    )
    assert read_notification(etree.fromstring(content)) == Notification(
        subscription_id="sub", more_events=True, previous_watermark="AQAA"
    )


# --- events for handlers


def test_mailbox_event_has_all_fields() -> None:
    given_event = Event(
        kind=EventKind.MOVED,
        timestamp="2024-05-14T09:30:05Z",
        item_id="i",
        change_key="k",
        parent_folder_id="p",
        old_item_id="oi",
        old_parent_folder_id="op",
        unread_count=1,
    )
    assert mailbox_event("anna@example.org", given_event) == MailboxEvent(
        type="exchange.item.moved",
        mailbox="anna@example.org",
        time="2024-05-14T09:30:05Z",
        item_id="i",
        change_key="k",
        parent_folder_id="p",
        old_item_id="oi",
        old_parent_folder_id="op",
        unread_count=1,
    )


def test_event_types() -> None:
    assert set(EVENT_TYPES) == {
        f"exchange.{what}.{change}"
        for what in ("item", "folder")
        for change in ("created", "deleted", "modified", "moved", "copied", "new_mail", "free_busy_changed")
    }
    assert len(EVENT_TYPES) == 14


@given(st.sampled_from(EventKind), st.booleans())
def test_every_event_has_a_documented_type(kind: EventKind, item: bool) -> None:
    changed = Event(kind=kind, item_id="x") if item else Event(kind=kind, folder_id="x")
    made = mailbox_event("a@example.org", changed)
    assert made.type in EVENT_TYPES
    assert made.type.startswith("exchange.item." if item else "exchange.folder.")
