"""GetFolder and FindFolder: requests and replies."""

from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from listener.ews.batch import Page
from listener.ews.codes import ExchangeError, Failure
from listener.ews.folders import Folder, find_folder, get_folder, read_find_folder, read_get_folder
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef
from tests.ews.samples import MESSAGES, SOAP, TYPES, back_off, fault, refused, reply
from tests.ews.variants import variants
from tests.xsd import validate, xsd_available

VERSION = "Exchange2013_SP1"
ANNA = Impersonation("PrimarySmtpAddress", "anna@example.org")
M, T = f"{{{MESSAGES}}}", f"{{{TYPES}}}"
INBOX, BEN, BY_ID = (
    FolderRef("inbox"),
    FolderRef("calendar", mailbox="ben@example.org"),
    FolderRef(folder_id="AAMk="),
)
_ID = st.text("AQMkc0/+=", min_size=1, max_size=12)
_TEXT = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)
_FOLDERS = st.sampled_from([INBOX, BEN, BY_ID, FolderRef("msgfolderroot")])


def body(content: bytes) -> etree._Element:
    found = etree.fromstring(content).find(f"{{{SOAP}}}Body")
    assert found is not None
    return found[0]


# --- requests


def test_get_folder_requests_all_properties() -> None:
    request = body(get_folder([INBOX, BEN, BY_ID], version=VERSION, impersonate=ANNA))
    assert request.tag == f"{M}GetFolder"
    shape, ids = request
    assert shape.findtext(f"{T}BaseShape") == "IdOnly"
    assert [path.get("FieldURI") for path in shape.iter(f"{T}FieldURI")] == [
        "folder:DisplayName",
        "folder:ParentFolderId",
        "folder:FolderClass",
        "folder:TotalCount",
        "folder:UnreadCount",
    ]
    assert [path.items() for path in shape.iter(f"{T}ExtendedFieldURI")] == [
        [("PropertyTag", "0x3008"), ("PropertyType", "SystemTime")],
        [("PropertyTag", "0x670a"), ("PropertyType", "SystemTime")],
        [("PropertyTag", "0x670b"), ("PropertyType", "Integer")],
    ]
    assert [(each.tag.removeprefix(T), each.get("Id")) for each in ids] == [
        ("DistinguishedFolderId", "inbox"),
        ("DistinguishedFolderId", "calendar"),
        ("FolderId", "AAMk="),
    ]
    assert ids[1].findtext(f"{T}Mailbox/{T}EmailAddress") == "ben@example.org"


def test_get_folder_with_ids_only() -> None:
    request = body(get_folder([BEN], id_only=True, version=VERSION))
    assert [each.tag.removeprefix(T) for each in request[0]] == ["BaseShape"]
    assert request[1][0].findtext(f"{T}Mailbox/{T}EmailAddress") == "ben@example.org"


def test_find_folder_request() -> None:
    request = body(find_folder(FolderRef("root"), offset=200, page_size=100, version=VERSION))
    assert (request.tag, request.get("Traversal")) == (f"{M}FindFolder", "Deep")
    shape, view, parents = request
    tags = [path.get("PropertyTag") for path in shape.iter(f"{T}ExtendedFieldURI")]
    assert tags == ["0x3008", "0x670a", "0x670b"]
    assert view.tag == f"{M}IndexedPageFolderView"
    assert dict(view.items()) == {"MaxEntriesReturned": "100", "Offset": "200", "BasePoint": "Beginning"}
    assert [each.get("Id") for each in parents] == ["root"]


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (0, 0), (0, 1001)])
def test_invalid_pages_are_rejected(offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        find_folder(INBOX, offset=offset, page_size=size, version=VERSION)


def test_request_without_folders_is_rejected() -> None:
    with pytest.raises(ValueError, match="requires a folder"):
        get_folder([], version=VERSION)


@xsd_available
@settings(deadline=None)
@given(st.lists(_FOLDERS, min_size=1, max_size=5), st.integers(0, 10**6), st.integers(1, 1000))
def test_requests_match_the_schema(folders: list[FolderRef], offset: int, size: int) -> None:
    validate(body(get_folder(folders, version=VERSION, impersonate=ANNA)))
    validate(body(find_folder(folders[0], offset=offset, page_size=size, version=VERSION)))


# --- replies

COMMIT = (
    '<t:ExtendedFieldURI PropertyTag="{}" PropertyType="SystemTime"/><t:Value>2024-05-14T09:30:05Z</t:Value>'
)
DELETED = '<t:ExtendedFieldURI PropertyTag="{}" PropertyType="Integer"/><t:Value>12</t:Value>'
INBOX_XML = (
    '<t:Folder><t:FolderId Id="f1" ChangeKey="k1"/><t:ParentFolderId Id="root" ChangeKey="k0"/>'
    "<t:FolderClass>IPF.Note</t:FolderClass><t:DisplayName>Inbox</t:DisplayName><t:TotalCount>40</t:TotalCount>"
    f"<t:ExtendedProperty>{COMMIT.format('0x670a')}</t:ExtendedProperty>"
    f"<t:ExtendedProperty>{DELETED.format('0x670b')}</t:ExtendedProperty><t:UnreadCount>3</t:UnreadCount></t:Folder>"
)
INBOX_FOLDER = Folder(
    folder_id="f1",
    change_key="k1",
    parent_folder_id="root",
    display_name="Inbox",
    folder_class="IPF.Note",
    commit_time_max="2024-05-14T09:30:05Z",
    deleted_count_total=12,
    total_count=40,
    unread_count=3,
    element="Folder",
)
CALENDAR_XML = '<t:CalendarFolder><t:FolderId Id="f2"/></t:CalendarFolder>'
CALENDAR_FOLDER = Folder(folder_id="f2", element="CalendarFolder")


def got(*messages: str) -> bytes:
    return reply("GetFolder", "".join(messages))


def success(folder: str) -> str:
    return (
        '<m:GetFolderResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f"<m:Folders>{folder}</m:Folders></m:GetFolderResponseMessage>"
    )


def failed(code: str, *, response_class: str = "Error", xml: str = "") -> str:
    return (
        f'<m:GetFolderResponseMessage ResponseClass="{response_class}"><m:MessageText>No.</m:MessageText>'
        f"<m:ResponseCode>{code}</m:ResponseCode><m:DescriptiveLinkKey>0</m:DescriptiveLinkKey>"
        f"{xml}<m:Folders/></m:GetFolderResponseMessage>"
    )


def found(folders: str, paging: str = 'IncludesLastItemInRange="true"') -> bytes:
    return reply(
        "FindFolder",
        '<m:FindFolderResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f"<m:RootFolder {paging}><t:Folders>{folders}</t:Folders></m:RootFolder></m:FindFolderResponseMessage>",
    )


def failure_of(call: object, *args: object) -> Failure:
    with pytest.raises(ExchangeError) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.failure


def test_each_folder_has_its_answer_in_order() -> None:
    busy = back_off(2000).replace("t:MessageXml", "m:MessageXml")
    content = got(
        success(INBOX_XML),
        failed("ErrorServerBusy", xml=busy),
        success(CALENDAR_XML),
        success(""),
        success("<t:Folder/>"),
    )
    folders = [FolderRef(folder_id=id_) for id_ in "hgfed"]
    answers = read_get_folder(content, folders)
    assert list(answers) == folders
    assert list(answers.values()) == [
        INBOX_FOLDER,
        Failure(code="ErrorServerBusy", text="No.", wait=2.0),
        CALENDAR_FOLDER,
        Failure(code="UnexpectedReply", text="GetFolderResponseMessage without a value"),
        Failure(code="UnexpectedReply", text="GetFolderResponseMessage without a value"),
    ]


def test_remaining_keys_of_a_stopped_batch_are_failures() -> None:
    content = got(
        failed("ErrorAccessDenied"), failed("ErrorBatchProcessingStopped", response_class="Warning")
    )
    assert [str(each) for each in read_get_folder(content, [INBOX, BEN]).values()] == [
        "ErrorAccessDenied: No.",
        "ErrorBatchProcessingStopped: No.",
    ]


def test_single_message_applies_to_all_folders() -> None:
    content = refused("GetFolder", "ErrorServerBusy")
    assert failure_of(read_get_folder, content, [INBOX, BEN]).code == "ErrorServerBusy"
    assert read_get_folder(content, [INBOX]) == {INBOX: Failure(code="ErrorServerBusy", text="No.")}
    content = got(success(INBOX_XML))
    assert failure_of(read_get_folder, content, [INBOX, BEN]) == Failure(
        code="UnexpectedReply", text="1 answers for 2"
    )


@pytest.mark.parametrize("tag", ["0x670a", "0x670A", "0X670A", "26378"])
def test_property_tags_are_hexadecimal_or_decimal(tag: str) -> None:
    folder = f'<t:Folder><t:FolderId Id="f"/><t:ExtendedProperty>{COMMIT.format(tag)}</t:ExtendedProperty></t:Folder>'
    (result,) = read_find_folder(found(folder)).found
    assert result.commit_time_max == "2024-05-14T09:30:05Z"


@pytest.mark.parametrize(
    "extended",
    [
        COMMIT.format("0x3007"),
        '<t:ExtendedFieldURI PropertyTag="0x670a" PropertyType="SystemTime"/>',
        '<t:ExtendedFieldURI PropertyTag="0x670b" PropertyType="Integer"/><t:Value>many</t:Value>',
        '<t:ExtendedFieldURI PropertyTag="0x670a" PropertyType="SystemTime"/><t:Value/>',
        '<t:ExtendedFieldURI PropertyType="Integer"/><t:Value>1</t:Value>',
        "<t:Value>1</t:Value>",
    ],
)
def test_invalid_extended_properties_are_ignored(extended: str) -> None:
    folder = f'<t:Folder><t:FolderId Id="f"/><t:ExtendedProperty>{extended}</t:ExtendedProperty></t:Folder>'
    assert read_find_folder(found(folder)).found == (Folder(folder_id="f", element="Folder"),)


def test_middle_page() -> None:
    paging = 'IndexedPagingOffset="2" TotalItemsInView="5" IncludesLastItemInRange="false"'
    page = read_find_folder(found(INBOX_XML + CALENDAR_XML, paging))
    assert page == Page((INBOX_FOLDER, CALENDAR_FOLDER), 2, 5)
    assert not page.includes_last


def test_last_page() -> None:
    paging = 'IndexedPagingOffset="5" TotalItemsInView="5" IncludesLastItemInRange="true"'
    page = read_find_folder(found(CALENDAR_XML, paging), 4)
    assert page == Page((CALENDAR_FOLDER,), None, 5)
    assert page.includes_last


@pytest.mark.parametrize(
    ("paging", "next_offset"),
    [
        ("", None),
        ('TotalItemsInView="1"', None),
        ('IndexedPagingOffset="12"', 12),
        ('IndexedPagingOffset="12" IncludesLastItemInRange="1"', None),
        ('IncludesLastItemInRange="false"', 11),  # without an offset
        ('IndexedPagingOffset="0" IncludesLastItemInRange="false"', 11),  # an endless loop to the beginning
        ('IndexedPagingOffset="soon" IncludesLastItemInRange="false"', 11),
    ],
)
def test_offset_of_the_next_page(paging: str, next_offset: int | None) -> None:
    assert read_find_folder(found(CALENDAR_XML, paging), 10).next_offset == next_offset


def test_empty_page() -> None:
    assert read_find_folder(found("")) == Page((), None, None)
    paging = 'IndexedPagingOffset="10" TotalItemsInView="{}" IncludesLastItemInRange="false"'
    assert read_find_folder(found("", paging.format(10)), 10) == Page((), None, 10)
    said = failure_of(read_find_folder, found("", paging.format(12)), 10)
    assert said == Failure(code="UnexpectedReply", text="an empty page at 10 of 12")


def test_reply_without_a_container() -> None:
    content = found("").replace(b"<t:Folders></t:Folders>", b"")
    assert read_find_folder(content) == Page((), None, None)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (refused("FindFolder", "ErrorFolderNotFound"), "ErrorFolderNotFound"),
        (fault("ErrorImpersonateUserDenied"), "ErrorImpersonateUserDenied"),
        (found("").replace(b"RootFolder", b"RotFolder"), "UnexpectedReply"),
        (found("<t:Folder/>"), "UnexpectedReply"),
        (reply("FindFolder", ""), "UnexpectedReply"),
        (b"<html></html>", "NotSoap"),
    ],
)
def test_invalid_pages(content: bytes, code: str) -> None:
    assert failure_of(read_find_folder, content).code == code


@xsd_available
def test_samples_match_the_schema() -> None:
    validate(body(got(success(INBOX_XML), failed("ErrorFolderNotFound"))))
    validate(body(found(INBOX_XML + CALENDAR_XML, 'IndexedPagingOffset="2" IncludesLastItemInRange="false"')))


def folder_xml(folder: Folder) -> str:
    """Return the folder with its elements in the order of the schema."""

    def element(name: str, value: object) -> str:
        return "" if value is None else f"<t:{name}>{escape(str(value))}</t:{name}>"

    def extended(tag: str, kind: str, value: object) -> str:
        uri = f'<t:ExtendedFieldURI PropertyTag="{tag}" PropertyType="{kind}"/>'
        inside = f"{uri}<t:Value>{value}</t:Value>"
        return "" if value is None else f"<t:ExtendedProperty>{inside}</t:ExtendedProperty>"

    key = "" if folder.change_key is None else f" ChangeKey={quoteattr(folder.change_key)}"
    parent = folder.parent_folder_id
    return (
        f"<t:{folder.element}><t:FolderId Id={quoteattr(folder.folder_id)}{key}/>"
        + (f"<t:ParentFolderId Id={quoteattr(parent)} ChangeKey='p'/>" if parent else "")
        + element("FolderClass", folder.folder_class)
        + element("DisplayName", folder.display_name)
        + element("TotalCount", folder.total_count)
        + extended("0x670a", "SystemTime", folder.commit_time_max)
        + extended("0x670b", "Integer", folder.deleted_count_total)
        + element("UnreadCount", folder.unread_count)
        + f"</t:{folder.element}>"
    )


_COUNT = st.none() | st.integers(-(2**31), 2**31 - 1)
_ANY_FOLDER = st.builds(
    Folder,
    folder_id=_ID,
    change_key=st.none() | _ID,
    parent_folder_id=st.none() | _ID,
    display_name=st.none() | _TEXT,
    folder_class=st.none() | _TEXT,
    commit_time_max=st.none() | st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    deleted_count_total=_COUNT,
    total_count=_COUNT,
    unread_count=_COUNT,
    element=st.sampled_from(
        ["Folder", "CalendarFolder", "ContactsFolder", "SearchFolder", "TasksFolder", "New"]
    ),
)


def page_of(folders: list[Folder]) -> tuple[bytes, Page[Folder]]:
    return found("".join(map(folder_xml, folders))), Page(tuple(folders))


@settings(deadline=None)
@given(variants(st.lists(_ANY_FOLDER, max_size=4).map(page_of)))
def test_any_variant_of_a_page(case: tuple[bytes, Page[Folder]]) -> None:
    content, page = case
    assert read_find_folder(content) == page
