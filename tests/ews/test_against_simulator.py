"""Requests and replies between listener.ews and the simulator, two implementations without common code."""

from datetime import UTC, datetime

import pytest

from listener.ews.batch import Page
from listener.ews.codes import ExchangeError, Failure, Verdict
from listener.ews.folders import Folder, find_folder, get_folder, read_find_folder, read_get_folder
from listener.ews.items import (
    Item,
    ItemProperty,
    find_item,
    get_item,
    next_page,
    read_find_item,
    read_get_item,
)
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef
from listener.ews.sync import (
    Change,
    ChangeKind,
    FolderChange,
    read_sync_folder_hierarchy,
    read_sync_folder_items,
    sync_folder_hierarchy,
    sync_folder_items,
)
from listener.simulator.http import HttpRequest
from listener.simulator.mailstore import Mailbox
from tests.simulator.client import Client

VERSION = "Exchange2013_SP1"
INBOX = FolderRef("inbox")
ALL_PROPERTIES = tuple(ItemProperty)


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Anna:
    """One mailbox of the simulator, and requests to it."""

    def __init__(self) -> None:
        self.client = Client()
        self.mailbox: Mailbox = self.client.mailboxes[0]
        self.impersonation = Impersonation("PrimarySmtpAddress", self.mailbox.address)

    def post(self, content: bytes) -> bytes:
        headers = {"x-anchormailbox": self.mailbox.address}
        account = self.client.settings.user
        request = HttpRequest("POST", "/EWS/Exchange.asmx", headers, content, account)
        reply = self.client.exchange.handle(request, self.client.now)
        reply.finish()
        assert isinstance(reply.body, bytes)
        return reply.body

    def deliver(self, count: int, *, apart: float = 1) -> None:
        for number in range(count):
            self.mailbox.deliver(f"Mail <{number}>", "ben@example.org", self.client.now)
            self.client.advance_time(apart)

    def folder(self, ref: FolderRef) -> Folder | Failure:
        content = self.post(get_folder([ref], version=VERSION, impersonate=self.impersonation))
        return read_get_folder(content, [ref])[ref]

    def find_folders(self, *, offset: int = 0, size: int = 1000) -> Page[Folder]:
        root = FolderRef("root")
        request = find_folder(
            root, offset=offset, page_size=size, version=VERSION, impersonate=self.impersonation
        )
        return read_find_folder(self.post(request), offset)

    def find_items(self, since: datetime | None = None, offset: int = 0, size: int = 1000) -> Page[Item]:
        request = find_item(
            INBOX, since=since, offset=offset, page_size=size, version=VERSION, impersonate=self.impersonation
        )
        return read_find_item(self.post(request), offset)

    def items(self, *ids: str) -> dict[str, Item | Failure]:
        request = get_item(ids, properties=ALL_PROPERTIES, version=VERSION, impersonate=self.impersonation)
        return read_get_item(self.post(request), ids)

    def sync(
        self, state: str | None = None, *, folder: FolderRef = INBOX, size: int = 512
    ) -> tuple[str, tuple[Change, ...]]:
        """Return the new state and all changes since the state, `size` per request."""
        found: tuple[Change, ...] = ()
        while True:
            request = sync_folder_items(
                folder, sync_state=state, max_changes=size, version=VERSION, impersonate=self.impersonation
            )
            reply = read_sync_folder_items(self.post(request))
            assert len(reply.changes) <= size
            state, found = reply.sync_state, found + reply.changes
            if reply.includes_last:
                return state, found

    def sync_hierarchy(self, state: str | None = None) -> tuple[str, tuple[FolderChange, ...]]:
        request = sync_folder_hierarchy(sync_state=state, version=VERSION, impersonate=self.impersonation)
        reply = read_sync_folder_hierarchy(self.post(request))
        assert reply.includes_last
        return reply.sync_state, reply.changes


@pytest.fixture
def anna() -> Anna:
    return Anna()


# --- folders


def test_folder_with_all_requested_properties(anna: Anna) -> None:
    anna.deliver(3)
    inbox = anna.mailbox.distinguished("inbox")
    folder = anna.folder(INBOX)
    assert isinstance(folder, Folder)
    assert folder.parent_folder_id == anna.mailbox.distinguished("msgfolderroot").id
    assert (folder.folder_id, folder.display_name, folder.element) == (inbox.id, "Inbox", "Folder")
    assert (folder.folder_class, folder.total_count, folder.unread_count) == ("IPF.Note", 3, 3)
    assert folder == anna.folder(FolderRef(folder_id=inbox.id))


def test_change_properties_follow_changes(anna: Anna) -> None:
    def now() -> tuple[str | None, int | None]:
        anna.client.advance_time(1)
        folder = anna.folder(INBOX)
        assert isinstance(folder, Folder)
        return folder.commit_time_max, folder.deleted_count_total

    before = now()
    assert now() == before
    anna.deliver(1)
    after = now()
    assert after != before
    (item,) = anna.mailbox.distinguished("inbox").items.values()
    anna.mailbox.purge(item, anna.client.now)
    assert now()[1] == (after[1] or 0) + 1


def test_find_folder_returns_all_folders_in_pages(anna: Anna) -> None:
    whole = anna.find_folders()
    assert whole.includes_last
    assert {folder.folder_id for folder in whole.found} == {
        folder.id for folder in anna.mailbox.folders.values() if folder.distinguished != "root"
    }
    found: list[Folder] = []
    offset: int | None = 0
    while offset is not None:
        page = anna.find_folders(offset=offset, size=4)
        assert page.total == len(whole.found)
        found += page.found
        offset = page.next_offset
    assert tuple(found) == whole.found


def test_missing_folders(anna: Anna) -> None:
    gone = FolderRef(folder_id=anna.mailbox.distinguished("inbox").id[:-8] + "AAAAAAA=")
    content = anna.post(get_folder([INBOX, gone], version=VERSION, impersonate=anna.impersonation))
    inbox, failure = read_get_folder(content, [INBOX, gone]).values()
    assert isinstance(inbox, Folder)
    assert isinstance(failure, Failure)
    assert failure.code == "ErrorItemNotFound"


def test_missing_mailbox(anna: Anna) -> None:
    request = get_folder(
        [INBOX], version=VERSION, impersonate=Impersonation("SmtpAddress", "nobody@example.org")
    )
    with pytest.raises(ExchangeError) as caught:
        read_get_folder(anna.post(request), [INBOX])
    assert caught.value.failure.verdict is Verdict.SUSPEND


# --- items


def test_items_and_their_changes(anna: Anna) -> None:
    anna.deliver(3)
    first, second, third = anna.mailbox.distinguished("inbox").items.values()
    first_id, second_id, third_id = first.id, second.id, third.id
    anna.mailbox.mark(first, anna.client.now, read=True)
    anna.mailbox.purge(second, anna.client.now)
    assert {item.item_id for item in anna.find_items().found} == {first_id, third_id}
    answers = anna.items(first_id, second_id, third_id)
    assert answers[first_id] == Item(
        item_id=first_id,
        change_key=anna.mailbox.change_key(first),
        element="Message",
        parent_folder_id=anna.mailbox.distinguished("inbox").id,
        item_class="IPM.Note",
        subject="Mail <0>",
        date_time_created="2023-11-14T22:13:20Z",
        date_time_received="2023-11-14T22:13:20Z",
        last_modified_time="2023-11-14T22:13:23Z",
        is_read=True,
    )
    gone, there = answers[second_id], answers[third_id]
    assert isinstance(gone, Failure)
    assert gone.code == "ErrorItemNotFound"
    assert isinstance(there, Item)
    assert there.is_read is False


def test_find_item_returns_all_items_in_pages(anna: Anna) -> None:
    anna.deliver(11, apart=0.5)
    seen: list[str] = []
    position: tuple[datetime | None, int] | None = (None, 0)
    while position is not None:
        page = anna.find_items(*position, size=3)
        seen += [item.item_id for item in page.found]
        position = next_page(page, position[0])
    assert set(seen) == set(anna.mailbox.distinguished("inbox").items)


def test_items_modified_since(anna: Anna) -> None:
    start = anna.client.now
    anna.deliver(5)
    first, _, third, fourth, fifth = anna.mailbox.distinguished("inbox").items.values()
    anna.mailbox.mark(first, anna.client.now, read=True)
    page = anna.find_items(moment(start + 2.9))
    assert [item.item_id for item in page.found] == [third.id, fourth.id, fifth.id, first.id]
    assert page.total == 4
    assert anna.find_items(moment(anna.client.now + 1)) == Page((), None, 0)


def test_pages_of_a_folder_that_changes(anna: Anna) -> None:
    anna.deliver(12)
    inbox = anna.mailbox.distinguished("inbox")
    seen: set[str] = set()
    position: tuple[datetime | None, int] | None = (None, 0)
    while position is not None:
        page = anna.find_items(*position, size=4)
        seen |= {item.item_id for item in page.found}
        position = next_page(page, position[0])
        if len(inbox.items) > 6:
            one, other = list(inbox.items.values())[:2]
            anna.mailbox.purge(one, anna.client.now)
            anna.mailbox.edit(other, "Changed", anna.client.now)
            anna.client.advance_time(1)
    assert seen >= set(inbox.items)


# --- changes


def kinds(changes: tuple[Change, ...]) -> dict[str, ChangeKind]:
    assert len({change.item_id for change in changes}) == len(changes)
    return {change.item_id: change.kind for change in changes}


def test_sync_without_a_state_returns_everything(anna: Anna) -> None:
    anna.deliver(5)
    state, changes = anna.sync(size=2)
    items = anna.mailbox.distinguished("inbox").items
    assert kinds(changes) == dict.fromkeys(items, ChangeKind.CREATE)
    assert {change.change_key for change in changes} == set(map(anna.mailbox.change_key, items.values()))
    assert {change.element for change in changes} == {"Message"}
    _, changes = anna.sync(state)
    assert changes == ()


def test_each_kind_of_change(anna: Anna) -> None:
    anna.deliver(6)
    state, _ = anna.sync()
    untouched, read, edited, purged, moved, gone = anna.mailbox.distinguished("inbox").items.values()
    purged_id, moved_id, gone_id = purged.id, moved.id, gone.id
    now = anna.client.now + 1
    anna.mailbox.mark(read, now, read=True)
    anna.mailbox.edit(edited, "Dinner?", now)
    anna.mailbox.purge(purged, now)
    anna.mailbox.move(moved, anna.mailbox.distinguished("drafts"), now)
    anna.mailbox.edit(gone, "Never mind", now)
    anna.mailbox.purge(gone, now)
    anna.deliver(1)
    new = list(anna.mailbox.distinguished("inbox").items)[-1]
    state, changes = anna.sync(state, size=2)
    assert kinds(changes) == {
        read.id: ChangeKind.READ_FLAG,
        edited.id: ChangeKind.UPDATE,
        purged_id: ChangeKind.DELETE,
        moved_id: ChangeKind.DELETE,
        gone_id: ChangeKind.DELETE,
        new: ChangeKind.CREATE,
    }
    assert untouched.id not in kinds(changes)
    assert [change.is_read for change in changes if change.item_id == read.id] == [True]
    _, drafts = anna.sync(folder=FolderRef("drafts"))
    assert kinds(drafts) == {moved.id: ChangeKind.CREATE}


def test_changes_have_the_requested_properties(anna: Anna) -> None:
    anna.deliver(1)
    request = sync_folder_items(
        INBOX, properties=ALL_PROPERTIES, version=VERSION, impersonate=anna.impersonation
    )
    (change,) = read_sync_folder_items(anna.post(request)).changes
    (item,) = anna.find_items().found
    assert (change.item_id, change.subject) == (item.item_id, "Mail <0>")
    assert change.last_modified_time == "2023-11-14T22:13:20Z"
    assert change.parent_folder_id == anna.mailbox.distinguished("inbox").id


def test_invalid_sync_state(anna: Anna) -> None:
    for state in ("bm9uc2Vuc2U=", "nonsense"):
        with pytest.raises(ExchangeError) as caught:
            anna.sync(state)
        assert caught.value.failure.verdict is Verdict.RESYNC


def test_sync_state_that_the_server_silently_lost(anna: Anna) -> None:
    anna.deliver(3)
    state, _ = anna.sync()
    anna.client.make_fault("sync_state_lost", mailbox=anna.mailbox.address, quiet=True)
    _, changes = anna.sync(state)
    items = anna.mailbox.distinguished("inbox").items
    assert kinds(changes) == dict.fromkeys(items, ChangeKind.CREATE)


def test_ignored_items_are_not_returned(anna: Anna) -> None:
    anna.deliver(3)
    first, second, third = anna.mailbox.distinguished("inbox").items
    request = sync_folder_items(INBOX, ignore=[second], version=VERSION, impersonate=anna.impersonation)
    changes = read_sync_folder_items(anna.post(request)).changes
    assert set(kinds(changes)) == {first, third}


def test_changes_of_the_hierarchy(anna: Anna) -> None:
    state, changes = anna.sync_hierarchy()
    assert {change.kind for change in changes} == {ChangeKind.CREATE}
    ids = {folder.id for folder in anna.mailbox.folders.values() if folder.distinguished != "root"}
    assert {change.folder_id for change in changes} <= ids
    assert anna.mailbox.distinguished("inbox").id in {change.folder_id for change in changes}

    top = anna.mailbox.distinguished("msgfolderroot")
    now = anna.client.now + 1
    anna.mailbox.create_folder("Offers", top, now)
    anna.mailbox.create_folder("Orders", top, now)
    offers, orders = list(anna.mailbox.folders.values())[-2:]
    state, changes = anna.sync_hierarchy(state)
    assert {(change.kind, change.display_name, change.folder_id) for change in changes} >= {
        (ChangeKind.CREATE, "Offers", offers.id),
        (ChangeKind.CREATE, "Orders", orders.id),
    }

    anna.mailbox.rename_folder(offers, "Old offers", now + 1)
    anna.mailbox.purge_folder(orders, now + 1)
    state, changes = anna.sync_hierarchy(state)
    assert {(change.kind, change.display_name, change.folder_id) for change in changes} >= {
        (ChangeKind.UPDATE, "Old offers", offers.id),
        (ChangeKind.DELETE, None, orders.id),
    }
    assert anna.sync_hierarchy(state)[1] == ()
