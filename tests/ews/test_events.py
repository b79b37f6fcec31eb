"""Notifications as values, and as what handlers get."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from listener.event import MailboxEvent
from listener.ews.events import EVENT_TYPES, Event, EventKind, Notification, mailbox_event, read_notification
from tests.ews.samples import MESSAGES, TYPES, event, notification


def read(*events: str) -> Notification:
    content = notification("sub", *events)
    return read_notification(etree.fromstring(f'<x xmlns:m="{MESSAGES}" xmlns:t="{TYPES}">{content}</x>')[0])


def one(xml: str) -> Event:
    (found,) = read(xml).events
    return found


def test_a_modified_folder() -> None:
    xml = event("ModifiedEvent", FolderId="f", ChangeKey="k", ParentFolderId="p", UnreadCount=7)
    assert one(xml) == Event(
        kind=EventKind.MODIFIED,
        timestamp="2024-05-14T09:30:05Z",
        folder_id="f",
        change_key="k",
        parent_folder_id="p",
        unread_count=7,
    )


def test_the_change_key_is_that_of_the_item_and_not_of_other_ids() -> None:
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


def test_a_copied_folder() -> None:
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
        ("0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00+01:00"),  # before the calendar begins
        ("0800-01-01T00:00:00+01:00", "0799-12-31T23:00:00Z"),
        ("yesterday", "yesterday"),
    ],
)
def test_time_stamps_are_in_utc_with_all_their_digits(sent: str, got: str) -> None:
    assert one(event("CreatedEvent", sent, ItemId="i")).timestamp == got


@pytest.mark.parametrize(
    ("sent", "got"), [("12", 12), (" -1\n", -1), ("", None), ("many", None), ("9" * 5000, None)]
)
def test_unread_counts(sent: str, got: int | None) -> None:
    assert one(event("ModifiedEvent", FolderId="f", UnreadCount=sent)).unread_count == got


def test_a_notification_of_the_schema_with_all_parts() -> None:
    content = (
        f'<t:Notification xmlns:t="{TYPES}"><t:SubscriptionId> sub </t:SubscriptionId>'
        "<t:PreviousWatermark>AQAA</t:PreviousWatermark><t:MoreEvents>1</t:MoreEvents>"
        "<t:StatusEvent><t:Watermark>AQAB</t:Watermark></t:StatusEvent></t:Notification>"
    )
    assert read_notification(etree.fromstring(content)) == Notification(
        subscription_id="sub", more_events=True, previous_watermark="AQAA"
    )


# --- for handlers


def test_all_fields_reach_the_handler() -> None:
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


def test_the_types() -> None:
    assert set(EVENT_TYPES) == {
        f"exchange.{what}.{change}"
        for what in ("item", "folder")
        for change in ("created", "deleted", "modified", "moved", "copied", "new_mail", "free_busy_changed")
    }
    assert len(EVENT_TYPES) == 14


@given(st.sampled_from(EventKind), st.booleans())
def test_every_event_has_one_of_the_types(kind: EventKind, item: bool) -> None:
    changed = Event(kind=kind, item_id="x") if item else Event(kind=kind, folder_id="x")
    made = mailbox_event("a@example.org", changed)
    assert made.type in EVENT_TYPES
    assert made.type.startswith("exchange.item." if item else "exchange.folder.")
