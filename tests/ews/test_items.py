"""FindItem and GetItem: requests and replies."""

from datetime import UTC, datetime, timedelta, timezone
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from listener.ews.batch import Page
from listener.ews.codes import ExchangeError, Failure
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
from tests.ews.samples import MESSAGES, SOAP, TYPES, fault, refused, reply
from tests.ews.variants import variants
from tests.xsd import validate, xsd_available

VERSION = "Exchange2013_SP1"
ANNA = Impersonation("PrimarySmtpAddress", "anna@example.org")
M, T = f"{{{MESSAGES}}}", f"{{{TYPES}}}"
INBOX = FolderRef("inbox")
NOON = datetime(2024, 5, 14, 12, tzinfo=UTC)
_ID = st.text("AQMkc0/+=", min_size=1, max_size=12)
_TEXT = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)
ELEMENTS = (
    "Item", "Message", "SharingMessage", "CalendarItem", "Contact", "DistributionList", "MeetingMessage",
    "MeetingRequest", "MeetingResponse", "MeetingCancellation", "Task", "PostItem", "RoleMember", "Network", "Person",
    "Hologram",
)  # fmt: skip


def body(content: bytes) -> etree._Element:
    found = etree.fromstring(content).find(f"{{{SOAP}}}Body")
    assert found is not None
    return found[0]


def uris(element: etree._Element) -> list[str | None]:
    return [path.get("FieldURI") for path in element.iter(f"{T}FieldURI")]


# --- requests


def test_find_item_request_for_all_items() -> None:
    request = body(find_item(INBOX, version=VERSION))
    assert (request.tag, request.get("Traversal")) == (f"{M}FindItem", "Shallow")
    shape, view, order, parents = request
    assert shape.findtext(f"{T}BaseShape") == "IdOnly"
    assert uris(shape) == ["item:LastModifiedTime"]
    assert view.tag == f"{M}IndexedPageItemView"
    assert dict(view.items()) == {"MaxEntriesReturned": "1000", "Offset": "0", "BasePoint": "Beginning"}
    assert [(field.tag, field.get("Order"), uris(field)) for field in order] == [
        (f"{T}FieldOrder", "Ascending", ["item:LastModifiedTime"])
    ]
    assert [each.get("Id") for each in parents] == ["inbox"]


@pytest.mark.parametrize(
    "since",
    [
        NOON,
        NOON + timedelta(microseconds=999_999),  # Exchange returns whole seconds
        NOON.astimezone(timezone(timedelta(hours=5, minutes=30))),
    ],
)
def test_find_item_request_since(since: datetime) -> None:
    request = body(
        find_item(
            INBOX, since=since, offset=20, page_size=10, properties=[ItemProperty.SUBJECT], version=VERSION
        )
    )
    tags = [part.tag.removeprefix(M) for part in request]
    assert tags == ["ItemShape", "IndexedPageItemView", "Restriction", "SortOrder", "ParentFolderIds"]
    assert uris(request[0]) == ["item:LastModifiedTime", "item:Subject"]
    assert (request[1].get("Offset"), request[1].get("MaxEntriesReturned")) == ("20", "10")
    (condition,) = request[2]
    assert condition.tag == f"{T}IsGreaterThanOrEqualTo"
    assert uris(condition) == ["item:LastModifiedTime"]
    constant = condition.find(f"{T}FieldURIOrConstant/{T}Constant")
    assert constant is not None
    assert constant.get("Value") == "2024-05-14T12:00:00Z"


def test_repeated_properties_are_requested_once() -> None:
    twice = [ItemProperty.SUBJECT, ItemProperty.LAST_MODIFIED_TIME, ItemProperty.SUBJECT]
    request = body(find_item(INBOX, properties=twice, version=VERSION))
    assert uris(request[0]) == ["item:LastModifiedTime", "item:Subject"]


def test_since_requires_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        find_item(INBOX, since=datetime(2024, 5, 14), version=VERSION)


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (0, 0), (0, 1001)])
def test_invalid_pages_are_rejected(offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        find_item(INBOX, offset=offset, page_size=size, version=VERSION)


def test_get_item_request() -> None:
    properties = [ItemProperty.PARENT_FOLDER_ID, ItemProperty.IS_READ]
    request = body(get_item(["a", "b"], properties=properties, version=VERSION, impersonate=ANNA))
    shape, ids = request
    assert uris(shape) == ["item:ParentFolderId", "message:IsRead"]
    assert [(each.tag, each.get("Id")) for each in ids] == [(f"{T}ItemId", "a"), (f"{T}ItemId", "b")]
    assert [part.tag for part in body(get_item(["a"], version=VERSION))[0]] == [f"{T}BaseShape"]


def test_request_without_items_is_rejected() -> None:
    with pytest.raises(ValueError, match="requires an item"):
        get_item([], version=VERSION)


@xsd_available
@settings(deadline=None)
@given(
    st.lists(_TEXT, min_size=1, max_size=10),
    st.lists(st.sampled_from(ItemProperty)),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.integers(0, 10**6),
    st.integers(1, 1000),
)
def test_requests_match_the_schema(
    ids: list[str], properties: list[ItemProperty], since: datetime | None, offset: int, size: int
) -> None:
    validate(body(get_item(ids, properties=properties, version=VERSION, impersonate=ANNA)))
    found = find_item(
        FolderRef(folder_id=ids[0]),
        since=since,
        offset=offset,
        page_size=size,
        properties=properties,
        version=VERSION,
    )
    validate(body(found))


# --- replies

MAIL_XML = (
    '<t:Message><t:ItemId Id="i1" ChangeKey="k1"/><t:ParentFolderId Id="f" ChangeKey="fk"/>'
    "<t:ItemClass>IPM.Note</t:ItemClass><t:Subject> Lunch? </t:Subject>"
    "<t:DateTimeCreated>2024-05-14T09:00:00Z</t:DateTimeCreated>"
    "<t:LastModifiedTime>2024-05-14T11:30:05+02:00</t:LastModifiedTime><t:IsRead>true</t:IsRead></t:Message>"
)
MAIL = Item(
    item_id="i1",
    change_key="k1",
    element="Message",
    parent_folder_id="f",
    item_class="IPM.Note",
    subject=" Lunch? ",
    date_time_created="2024-05-14T09:00:00Z",
    last_modified_time="2024-05-14T09:30:05Z",
    is_read=True,
)


def got(*messages: str) -> bytes:
    return reply("GetItem", "".join(messages))


def success(item: str) -> str:
    return (
        '<m:GetItemResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f"<m:Items>{item}</m:Items></m:GetItemResponseMessage>"
    )


def failed(code: str, response_class: str = "Error") -> str:
    return (
        f'<m:GetItemResponseMessage ResponseClass="{response_class}"><m:MessageText>No.</m:MessageText>'
        f"<m:ResponseCode>{code}</m:ResponseCode><m:DescriptiveLinkKey>0</m:DescriptiveLinkKey><m:Items/>"
        "</m:GetItemResponseMessage>"
    )


def found(items: str, paging: str = 'IncludesLastItemInRange="true"') -> bytes:
    return reply(
        "FindItem",
        '<m:FindItemResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f"<m:RootFolder {paging}><t:Items>{items}</t:Items></m:RootFolder></m:FindItemResponseMessage>",
    )


def test_each_item_has_its_answer_in_order() -> None:
    content = got(
        success(MAIL_XML),
        failed("ErrorItemNotFound"),
        success('<t:Task><t:ItemId Id="i3"/></t:Task>'),
        failed("ErrorBatchProcessingStopped", "Warning"),
    )
    assert list(read_get_item(content, list("dcba")).items()) == [
        ("d", MAIL),
        ("c", Failure(code="ErrorItemNotFound", text="No.")),
        ("b", Item(item_id="i3", element="Task")),
        ("a", Failure(code="ErrorBatchProcessingStopped", text="No.")),
    ]


def test_reply_with_forbidden_characters_is_read() -> None:
    item = '<t:Message><t:ItemId Id="i"/><t:Subject>a&#x0;b&#x1F;\x0c</t:Subject></t:Message>'
    assert read_get_item(got(success(item), success(MAIL_XML)), ["i", "i1"]) == {
        "i": Item(item_id="i", element="Message", subject="a\ufffdb\ufffd\ufffd"),
        "i1": MAIL,
    }


@pytest.mark.parametrize(
    ("said", "read"),
    [("true", True), ("False", False), ("1", True), (" 0 ", False), ("", None), ("yes", None)],
)
def test_read_flags(said: str, read: bool | None) -> None:
    item = f'<t:PostItem><t:ItemId Id="i"/><t:IsRead>{said}</t:IsRead></t:PostItem>'
    assert read_find_item(found(item)).found == (Item(item_id="i", element="PostItem", is_read=read),)


def test_page_of_items() -> None:
    paging = 'IndexedPagingOffset="1" TotalItemsInView="9" IncludesLastItemInRange="false"'
    assert read_find_item(found(MAIL_XML, paging)) == Page((MAIL,), 1, 9)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (refused("GetItem", "ErrorServerBusy"), "ErrorServerBusy"),
        (fault("ErrorImpersonateUserDenied"), "ErrorImpersonateUserDenied"),
        (got(success(MAIL_XML)), "UnexpectedReply"),  # one answer for two items
        (reply("GetItem", ""), "UnexpectedReply"),
        (b"<html></html>", "NotSoap"),
    ],
)
def test_invalid_replies(content: bytes, code: str) -> None:
    with pytest.raises(ExchangeError) as caught:
        read_get_item(content, ["a", "b"])
    assert caught.value.failure.code == code


@xsd_available
def test_samples_match_the_schema() -> None:
    validate(body(got(success(MAIL_XML), failed("ErrorItemNotFound"))))
    validate(body(found(MAIL_XML, 'IndexedPagingOffset="1" IncludesLastItemInRange="false"')))


def item_xml(item: Item) -> str:
    """Return the item with its elements in the order of the schema."""

    def element(name: str, value: object) -> str:
        return "" if value is None else f"<t:{name}>{escape(str(value))}</t:{name}>"

    key = "" if item.change_key is None else f" ChangeKey={quoteattr(item.change_key)}"
    parent = item.parent_folder_id
    return (
        f"<t:{item.element}><t:ItemId Id={quoteattr(item.item_id)}{key}/>"
        + (f"<t:ParentFolderId Id={quoteattr(parent)} ChangeKey='p'/>" if parent else "")
        + element("ItemClass", item.item_class)
        + element("Subject", item.subject)
        + element("DateTimeCreated", item.date_time_created)
        + element("LastModifiedTime", item.last_modified_time)
        + element("IsRead", None if item.is_read is None else str(item.is_read).lower())
        + f"</t:{item.element}>"
    )


_TIME = st.datetimes().map(lambda moment: f"{moment.isoformat()}Z")
_ITEMS = st.builds(
    Item,
    item_id=_ID,
    change_key=st.none() | _ID,
    element=st.sampled_from(ELEMENTS),
    parent_folder_id=st.none() | _ID,
    item_class=st.none() | _TEXT,
    subject=st.none() | _TEXT,
    date_time_created=st.none() | _TIME,
    last_modified_time=st.none() | _TIME,
    is_read=st.none() | st.booleans(),
)


def page_of(items: list[Item]) -> tuple[bytes, Page[Item]]:
    return found("".join(map(item_xml, items))), Page(tuple(items))


@settings(deadline=None)
@given(variants(st.lists(_ITEMS, max_size=4).map(page_of)))
def test_any_variant_of_a_page(case: tuple[bytes, Page[Item]]) -> None:
    content, page = case
    assert read_find_item(content) == page


def batch_of(answers: list[Item | str]) -> tuple[bytes, list[object]]:
    messages = [failed(each) if isinstance(each, str) else success(item_xml(each)) for each in answers]
    return got(*messages), [
        Failure(code=each, text="No.") if isinstance(each, str) else each for each in answers
    ]


@settings(deadline=None)
@given(
    variants(
        st.lists(_ITEMS | st.sampled_from(["ErrorItemNotFound", "ErrorAccessDenied"]), min_size=1).map(
            batch_of
        )
    )
)
def test_any_variant_of_a_batch(case: tuple[bytes, list[object]]) -> None:
    content, answers = case
    ids = [str(number) for number in range(len(answers))]
    assert list(read_get_item(content, ids).values()) == answers


# --- paging


def at(*seconds: float | None, next_offset: int | None = 3) -> Page[Item]:
    """Return a page of items that were last modified at these seconds after noon."""
    times = [None if s is None else (NOON + timedelta(seconds=s)).isoformat() for s in seconds]
    return Page(tuple(Item(item_id="i", last_modified_time=time) for time in times), next_offset)


@pytest.mark.parametrize(
    ("page", "since", "following"),
    [
        (at(0, 1, 2), None, (2, 0)),
        (at(0, 1, 2.5), 0, (2, 0)),
        (at(5, 5, 5), 4, (5, 0)),
        (at(5, 5, 5), 5, (5, 3)),  # all items of one second
        (at(5, 5.1, 5.9), 5, (5, 3)),
        (at(5, 6, 7), 7, (7, 3)),  # the server ignores the restriction
        (at(2, 1, 0), None, (None, 3)),  # and the sort order
        (at(2, 1, 5), 0, (0, 3)),
        (at(0, None, 2), 0, (0, 3)),
        (at(None), 0, (0, 3)),
        (at(0, 1, 2, next_offset=None), 0, None),
        (at(next_offset=None), 0, None),
    ],
)
def test_next_page(page: Page[Item], since: int | None, following: tuple[int | None, int] | None) -> None:
    def moment(second: int | None) -> datetime | None:
        return None if second is None else NOON + timedelta(seconds=second)

    expected = None if following is None else (moment(following[0]), following[1])
    assert next_page(page, moment(since)) == expected


@pytest.mark.parametrize("time", ["", "noon", "2024-05-14T12:00:00"])
def test_next_page_ignores_invalid_times(time: str) -> None:
    page = Page((Item(item_id="i", last_modified_time=time),), 3)
    assert next_page(page, NOON) == (NOON, 3)


@settings(deadline=None)
@given(
    st.integers(0, 12),
    st.lists(st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=2), max_size=20),
)
def test_no_item_is_skipped_while_the_folder_changes(count: int, steps: list[list[tuple[int, bool]]]) -> None:
    """Pages of three items, never all of one second. After each page, some items are modified or removed."""
    folder = {number: number // 2 for number in range(count)}
    now, seen = 10, set[int]()
    position: tuple[datetime | None, int] | None = (NOON, 0)
    while position is not None:
        since, offset = position
        assert since is not None
        matching = sorted(
            (second, number) for number, second in folder.items() if NOON + timedelta(seconds=second) >= since
        )
        rows = matching[offset : offset + 3]
        seen |= {number for _, number in rows}
        end = offset + len(rows)
        page = at(*(second for second, _ in rows), next_offset=end if end < len(matching) else None)
        position = next_page(page, since)
        for number, leaves in steps.pop() if steps else []:
            now += 1
            if leaves:
                folder.pop(number, None)
            elif number in folder:
                folder[number] = now
    assert seen >= folder.keys()
