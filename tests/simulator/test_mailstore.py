from base64 import b64decode
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from listener.simulator.mailstore import KINDS, Event, Mailbox

GUID = UUID("6b0d3a52-7c1e-4f0a-9d55-0123456789ab")


def new_mailbox() -> Mailbox:
    return Mailbox("alice@contoso.example", "Alice", GUID, 1000.0)


def summary(events: list[Event]) -> list[str]:
    return [f"{event.kind} {'item' if event.item_id else 'folder'}" for event in events]


def test_deliver() -> None:
    mailbox = new_mailbox()
    inbox = mailbox.distinguished("inbox")
    created, new, modified = mailbox.deliver("Hello", "bob@fabrikam.example", 1001.0)
    assert summary([created, new, modified]) == [
        "CreatedEvent item",
        "NewMailEvent item",
        "ModifiedEvent folder",
    ]
    assert created.item_id == new.item_id
    assert created.parent_folder_id == modified.folder_id == inbox.id
    assert modified.parent_folder_id == mailbox.distinguished("msgfolderroot").id
    assert modified.unread_count == inbox.unread == 1
    assert created.time == 1001.0


def test_mark_read_changes_the_count_once() -> None:
    mailbox = new_mailbox()
    mailbox.deliver("Hello", "bob@fabrikam.example", 1001.0)
    (item,) = mailbox.latest(mailbox.distinguished("inbox"), 5)
    events = mailbox.mark(item, 1002.0, read=True)
    assert summary(events) == ["ModifiedEvent item", "ModifiedEvent folder"]
    assert events[1].unread_count == 0
    assert mailbox.mark(item, 1003.0, read=True) == []


def test_moved_item_has_a_new_id_and_reports_the_old_one() -> None:
    mailbox = new_mailbox()
    mailbox.deliver("Hello", "bob@fabrikam.example", 1001.0)
    inbox, deleted_items = mailbox.distinguished("inbox"), mailbox.distinguished("deleteditems")
    (item,) = mailbox.latest(inbox, 1)
    old_id = item.id
    moved, source, target = mailbox.move(item, deleted_items, 1002.0)
    assert summary([moved, source, target]) == [
        "MovedEvent item",
        "ModifiedEvent folder",
        "ModifiedEvent folder",
    ]
    assert (moved.old_id, moved.old_parent_folder_id) == (old_id, inbox.id)
    assert moved.item_id != old_id
    assert moved.parent_folder_id == deleted_items.id
    assert (source.folder_id, source.unread_count) == (inbox.id, 0)
    assert (target.folder_id, target.unread_count) == (deleted_items.id, 1)
    assert mailbox.item(old_id) is None
    assert list(inbox.deleted) == [old_id]


def test_copy_keeps_the_original() -> None:
    mailbox = new_mailbox()
    drafts, sent = mailbox.distinguished("drafts"), mailbox.distinguished("sentitems")
    mailbox.save(drafts, "IPM.Note", "Draft", 1001.0)
    (item,) = drafts.items.values()
    copied, modified = mailbox.copy(item, sent, 1002.0)
    assert summary([copied, modified]) == ["CopiedEvent item", "ModifiedEvent folder"]
    assert copied.old_id == item.id
    assert copied.old_parent_folder_id == drafts.id
    assert list(sent.items) == [copied.item_id]
    assert list(drafts.items) == [item.id]


def test_appointment_changes_free_busy() -> None:
    mailbox = new_mailbox()
    calendar = mailbox.distinguished("calendar")
    made = mailbox.save(calendar, "IPM.Appointment", "Lunch", 1001.0)
    assert summary(made) == ["CreatedEvent item", "FreeBusyChangedEvent item", "ModifiedEvent folder"]
    (item,) = calendar.items.values()
    assert summary(mailbox.reschedule(item, 1002.0)) == ["ModifiedEvent item", "FreeBusyChangedEvent item"]
    gone = mailbox.purge(item, 1003.0)
    assert summary(gone) == ["DeletedEvent item", "FreeBusyChangedEvent item", "ModifiedEvent folder"]


def test_create_rename_move_and_purge_a_folder() -> None:
    mailbox = new_mailbox()
    inbox, deleted_items = mailbox.distinguished("inbox"), mailbox.distinguished("deleteditems")
    created, _ = mailbox.create_folder("Projects", inbox, 1001.0)
    (folder,) = mailbox.own_folders()
    assert (created.kind, created.folder_id, created.parent_folder_id) == (
        "CreatedEvent",
        folder.id,
        inbox.id,
    )
    mailbox.create_folder("Inner", folder, 1002.0)
    assert summary(mailbox.rename_folder(folder, "Customers", 1003.0)) == ["ModifiedEvent folder"]
    moved, _, _ = mailbox.move_folder(folder, deleted_items, 1004.0)
    assert (moved.folder_id, moved.old_id, moved.old_parent_folder_id) == (folder.id, folder.id, inbox.id)
    assert [below.name for below in mailbox.below(deleted_items)] == ["Customers", "Inner"]
    gone = mailbox.purge_folder(folder, 1005.0)
    assert summary(gone) == ["DeletedEvent folder", "DeletedEvent folder", "ModifiedEvent folder"]
    assert mailbox.below(deleted_items) == []


def test_ids_have_the_format_of_exchange() -> None:
    mailbox = new_mailbox()
    mailbox.deliver("Hello", "bob@fabrikam.example", 1001.0)
    inbox = mailbox.distinguished("inbox")
    (item,) = inbox.items.values()
    assert (len(inbox.id), len(item.id)) == (120, 152)
    assert inbox.id.startswith("AAMkA")
    assert b64decode(item.id)[4:40] == str(GUID).encode()
    assert len(mailbox.change_key(item)) == 40
    assert mailbox.change_key(item).startswith("CQAAABYAAA")


@given(st.lists(st.sampled_from(["deliver", "read", "move", "copy", "purge", "edit", "appoint", "folder"])))
def test_counts_are_right_and_events_are_unique_after_any_actions(actions: list[str]) -> None:
    mailbox = new_mailbox()
    inbox, calendar = mailbox.distinguished("inbox"), mailbox.distinguished("calendar")
    events: list[Event] = []
    for number, action in enumerate(actions):
        now = 1001.0 + number
        items = mailbox.latest(inbox, 1)
        if action == "deliver":
            events += mailbox.deliver("x", "y@z.example", now)
        elif action == "appoint":
            events += mailbox.save(calendar, "IPM.Appointment", "x", now)
        elif action == "folder":
            events += mailbox.create_folder("x", inbox, now)
        elif not items:
            continue
        elif action == "read":
            events += mailbox.mark(items[0], now, read=True)
        elif action == "move":
            events += mailbox.move(items[0], mailbox.distinguished("junkemail"), now)
        elif action == "copy":
            events += mailbox.copy(items[0], inbox, now)
        elif action == "purge":
            events += mailbox.purge(items[0], now)
        elif action == "edit":
            events += mailbox.edit(items[0], "other", now)
    keys = [(event.kind, event.item_id or event.folder_id, event.change_key) for event in events]
    assert len(keys) == len(set(keys))
    assert {event.kind for event in events} <= set(KINDS)
    assert all((event.item_id is None) != (event.folder_id is None) for event in events)
    for folder in mailbox.folders.values():
        assert folder.unread == sum(not item.read for item in folder.items.values())
        assert all(mailbox.item(id_) is item for id_, item in folder.items.items())
