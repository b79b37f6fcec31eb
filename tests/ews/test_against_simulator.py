"""Our bytes to the simulator and its bytes to us: two readings of one protocol, which share no code."""

from datetime import UTC, datetime

import pytest

from listener.errors import ExchangeError
from listener.ews.batch import Page
from listener.ews.codes import Failure, Verdict
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
from listener.simulator.http import HttpRequest
from listener.simulator.mailstore import Mailbox
from tests.simulator.client import Client

VERSION = "Exchange2013_SP1"
INBOX = FolderRef("inbox")
ALL_PROPERTIES = tuple(ItemProperty)


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Anna:
    """One mailbox of the simulator, and our requests to it."""

    def __init__(self) -> None:
        self.client = Client()
        self.mailbox: Mailbox = self.client.mailboxes[0]
        self.who = Impersonation("PrimarySmtpAddress", self.mailbox.address)

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
            self.client.pass_(apart)

    def folder(self, ref: FolderRef) -> Folder | Failure:
        content = self.post(get_folder([ref], version=VERSION, impersonate=self.who))
        return read_get_folder(content, [ref])[ref]

    def find_folders(self, *, offset: int = 0, size: int = 1000) -> Page[Folder]:
        root = FolderRef("root")
        request = find_folder(root, offset=offset, page_size=size, version=VERSION, impersonate=self.who)
        return read_find_folder(self.post(request), offset)

    def find_items(self, since: datetime | None = None, offset: int = 0, size: int = 1000) -> Page[Item]:
        request = find_item(
            INBOX, since=since, offset=offset, page_size=size, version=VERSION, impersonate=self.who
        )
        return read_find_item(self.post(request), offset)

    def items(self, *ids: str) -> dict[str, Item | Failure]:
        request = get_item(ids, properties=ALL_PROPERTIES, version=VERSION, impersonate=self.who)
        return read_get_item(self.post(request), ids)


@pytest.fixture
def anna() -> Anna:
    return Anna()


# --- folders


def test_a_folder_with_all_that_is_asked(anna: Anna) -> None:
    anna.deliver(3)
    inbox = anna.mailbox.distinguished("inbox")
    folder = anna.folder(INBOX)
    assert isinstance(folder, Folder)
    assert folder.parent_folder_id == anna.mailbox.distinguished("msgfolderroot").id
    assert (folder.folder_id, folder.display_name, folder.element) == (inbox.id, "Inbox", "Folder")
    assert (folder.folder_class, folder.total_count, folder.unread_count) == ("IPF.Note", 3, 3)
    assert folder == anna.folder(FolderRef(folder_id=inbox.id))


def test_the_two_properties_move_with_what_happens(anna: Anna) -> None:
    def now() -> tuple[str | None, int | None]:
        anna.client.pass_(1)
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


def test_all_folders_page_by_page(anna: Anna) -> None:
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


def test_folders_that_are_not_there(anna: Anna) -> None:
    gone = FolderRef(folder_id=anna.mailbox.distinguished("inbox").id[:-8] + "AAAAAAA=")
    content = anna.post(get_folder([INBOX, gone], version=VERSION, impersonate=anna.who))
    inbox, failure = read_get_folder(content, [INBOX, gone]).values()
    assert isinstance(inbox, Folder)
    assert isinstance(failure, Failure)
    assert failure.code == "ErrorItemNotFound"


def test_a_mailbox_that_is_not_there(anna: Anna) -> None:
    request = get_folder(
        [INBOX], version=VERSION, impersonate=Impersonation("SmtpAddress", "nobody@example.org")
    )
    with pytest.raises(ExchangeError) as caught:
        read_get_folder(anna.post(request), [INBOX])
    assert caught.value.failure.verdict is Verdict.PARK


# --- items


def test_items_and_what_became_of_them(anna: Anna) -> None:
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
        last_modified_time="2023-11-14T22:13:23Z",
        is_read=True,
    )
    gone, there = answers[second_id], answers[third_id]
    assert isinstance(gone, Failure)
    assert gone.code == "ErrorItemNotFound"
    assert isinstance(there, Item)
    assert there.is_read is False


def test_every_item_is_found_page_by_page(anna: Anna) -> None:
    anna.deliver(11, apart=0.5)
    seen: list[str] = []
    position: tuple[datetime | None, int] | None = (None, 0)
    while position is not None:
        page = anna.find_items(*position, size=3)
        seen += [item.item_id for item in page.found]
        position = next_page(page, *position)
    assert set(seen) == set(anna.mailbox.distinguished("inbox").items)
