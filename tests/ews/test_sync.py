"""SyncFolderItems and SyncFolderHierarchy: requests and replies."""

from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from listener.ews.codes import ExchangeError, Failure, Verdict
from listener.ews.items import ItemProperty
from listener.ews.soap import Impersonation
from listener.ews.subscription import FolderRef
from listener.ews.sync import (
    Change,
    ChangeKind,
    FolderChange,
    FolderChanges,
    ItemChanges,
    SyncScope,
    read_sync_folder_hierarchy,
    read_sync_folder_items,
    sync_folder_hierarchy,
    sync_folder_items,
)
from tests.ews.samples import MESSAGES, SOAP, TYPES, fault, refused, reply
from tests.ews.variants import variants
from tests.xsd import validate, xsd_available

VERSION = "Exchange2013_SP1"
ANNA = Impersonation("PrimarySmtpAddress", "anna@example.org")
M, T = f"{{{MESSAGES}}}", f"{{{TYPES}}}"
INBOX = FolderRef("inbox")
_ID = st.text("AQMkc0/+=", min_size=1, max_size=12)
_TEXT = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)
_FOLDERS = st.one_of(
    st.just(INBOX),
    _TEXT.map(lambda owner: FolderRef("msgfolderroot", mailbox=owner)),
    _TEXT.map(lambda id_: FolderRef(folder_id=id_)),
)
# Every element that ArrayOfRealItemsType allows, and an unknown one.
ITEM_ELEMENTS = (
    "Item", "Message", "SharingMessage", "CalendarItem", "Contact", "DistributionList", "MeetingMessage",
    "MeetingRequest", "MeetingResponse", "MeetingCancellation", "Task", "PostItem", "RoleMember", "Network", "Person",
    "Hologram",
)  # fmt: skip
FOLDER_ELEMENTS = ("Folder", "CalendarFolder", "ContactsFolder", "SearchFolder", "TasksFolder", "PagesFolder")


def body(content: bytes) -> etree._Element:
    found = etree.fromstring(content).find(f"{{{SOAP}}}Body")
    assert found is not None
    return found[0]


# --- requests


def test_minimal_request() -> None:
    request = body(sync_folder_items(INBOX, version=VERSION))
    assert request.tag == f"{M}SyncFolderItems"
    assert [part.tag for part in request] == [f"{M}ItemShape", f"{M}SyncFolderId", f"{M}MaxChangesReturned"]
    assert [(part.tag, part.text) for part in request[0]] == [(f"{T}BaseShape", "IdOnly")]
    assert request[1][0].get("Id") == "inbox"
    assert request[2].text == "512"


def test_request_with_all_parts() -> None:
    request = body(
        sync_folder_items(
            FolderRef("calendar", mailbox="ben@example.org"),
            sync_state="H4sI",
            properties=[ItemProperty.LAST_MODIFIED_TIME, ItemProperty.IS_READ],
            ignore=["a", "b"],
            max_changes=10,
            scope=SyncScope.NORMAL_AND_ASSOCIATED,
            version=VERSION,
            impersonate=ANNA,
        )
    )
    assert [part.tag.removeprefix(M) for part in request] == [
        "ItemShape", "SyncFolderId", "SyncState", "Ignore", "MaxChangesReturned", "SyncScope",
    ]  # fmt: skip
    shape, folder, state, ignore, most, scope = request
    uris = [path.get("FieldURI") for path in shape.iter(f"{T}FieldURI")]
    assert uris == ["item:LastModifiedTime", "message:IsRead"]
    assert folder.findtext(f"{T}DistinguishedFolderId/{T}Mailbox/{T}EmailAddress") == "ben@example.org"
    assert [id_.get("Id") for id_ in ignore] == ["a", "b"]
    assert (state.text, most.text, scope.text) == ("H4sI", "10", "NormalAndAssociatedItems")


@pytest.mark.parametrize("most", [-1, 0, 513])
def test_max_changes_is_1_to_512(most: int) -> None:
    with pytest.raises(ValueError, match="1 to 512"):
        sync_folder_items(INBOX, max_changes=most, version=VERSION)


def test_hierarchy_of_the_whole_mailbox_needs_no_folder() -> None:
    request = body(sync_folder_hierarchy(version=VERSION))
    assert [part.tag for part in request] == [f"{M}FolderShape"]
    request = body(sync_folder_hierarchy(FolderRef("msgfolderroot"), sync_state="H4sI", version=VERSION))
    assert [part.tag for part in request] == [f"{M}FolderShape", f"{M}SyncFolderId", f"{M}SyncState"]


@xsd_available
@settings(deadline=None)
@given(
    _FOLDERS,
    st.none() | _TEXT,
    st.lists(st.sampled_from(ItemProperty), unique=True),
    st.lists(_TEXT, max_size=3),
    st.integers(1, 512),
    st.none() | st.sampled_from(SyncScope),
)
def test_requests_match_the_schema(
    folder: FolderRef,
    state: str | None,
    properties: list[ItemProperty],
    ignore: list[str],
    most: int,
    scope: SyncScope | None,
) -> None:
    items = sync_folder_items(
        folder,
        sync_state=state,
        properties=properties,
        ignore=ignore,
        max_changes=most,
        scope=scope,
        version=VERSION,
        impersonate=ANNA,
    )
    validate(body(items))
    validate(body(sync_folder_hierarchy(folder, sync_state=state, version=VERSION)))
    validate(body(sync_folder_hierarchy(sync_state=state, version=VERSION)))


# --- replies


def synced(changes: str, *, state: str = "H4sI", last: str = "true", what: str = "Item") -> bytes:
    operation = {"Item": "SyncFolderItems", "Folder": "SyncFolderHierarchy"}[what]
    flag = f"<m:IncludesLast{what}InRange>{last}</m:IncludesLast{what}InRange>" if last else ""
    return reply(
        operation,
        f'<m:{operation}ResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f"<m:SyncState>{state}</m:SyncState>{flag}<m:Changes>{changes}</m:Changes>"
        f"</m:{operation}ResponseMessage>",
    )


def id_element(name: str, id_: str, change_key: str | None) -> str:
    key = "" if change_key is None else f" ChangeKey={quoteattr(change_key)}"
    return f"<t:{name} Id={quoteattr(id_)}{key}/>"


CHANGES = (
    '<t:Create><t:Message><t:ItemId Id="i1" ChangeKey="k1"/><t:ParentFolderId Id="f" ChangeKey="fk"/>'
    "<t:Subject>Lunch?</t:Subject><t:LastModifiedTime>2024-05-14T09:30:05Z</t:LastModifiedTime>"
    "<t:IsRead>false</t:IsRead></t:Message></t:Create>"
    '<t:Update><t:CalendarItem><t:ItemId Id="i2"/></t:CalendarItem></t:Update>'
    '<t:Delete><t:ItemId Id="i3" ChangeKey="k3"/></t:Delete>'
    '<t:ReadFlagChange><t:ItemId Id="i4" ChangeKey="k4"/><t:IsRead>true</t:IsRead></t:ReadFlagChange>'
)


def test_changes_of_items() -> None:
    assert read_sync_folder_items(synced(CHANGES, last="false")) == ItemChanges(
        "H4sI",
        False,
        (
            Change(
                kind=ChangeKind.CREATE,
                item_id="i1",
                change_key="k1",
                element="Message",
                parent_folder_id="f",
                subject="Lunch?",
                last_modified_time="2024-05-14T09:30:05Z",
                is_read=False,
            ),
            Change(kind=ChangeKind.UPDATE, item_id="i2", element="CalendarItem"),
            Change(kind=ChangeKind.DELETE, item_id="i3", change_key="k3"),
            Change(kind=ChangeKind.READ_FLAG, item_id="i4", change_key="k4", is_read=True),
        ),
    )


FOLDER_CHANGES = (
    '<t:Create><t:Folder><t:FolderId Id="f1" ChangeKey="k1"/><t:ParentFolderId Id="p"/>'
    "<t:FolderClass>IPF.Note</t:FolderClass><t:DisplayName>Offers &amp; orders</t:DisplayName>"
    '<t:TotalCount>7</t:TotalCount><t:ExtendedProperty><t:ExtendedFieldURI PropertyTag="0x670b" '
    'PropertyType="Integer"/><t:Value>12</t:Value></t:ExtendedProperty><t:UnreadCount>2</t:UnreadCount>'
    "</t:Folder></t:Create>"
    '<t:Update><t:CalendarFolder><t:FolderId Id="f2" ChangeKey="k2"/></t:CalendarFolder></t:Update>'
    '<t:Delete><t:FolderId Id="f3"/></t:Delete>'
)


def test_changes_of_folders() -> None:
    assert read_sync_folder_hierarchy(synced(FOLDER_CHANGES, what="Folder")) == FolderChanges(
        "H4sI",
        True,
        (
            FolderChange(
                kind=ChangeKind.CREATE,
                folder_id="f1",
                change_key="k1",
                element="Folder",
                parent_folder_id="p",
                folder_class="IPF.Note",
                display_name="Offers & orders",
                total_count=7,
                unread_count=2,
                deleted_count_total=12,
            ),
            FolderChange(kind=ChangeKind.UPDATE, folder_id="f2", change_key="k2", element="CalendarFolder"),
            FolderChange(kind=ChangeKind.DELETE, folder_id="f3"),
        ),
    )


@xsd_available
def test_samples_match_the_schema() -> None:
    validate(body(synced(CHANGES)))
    validate(body(synced(FOLDER_CHANGES, what="Folder")))


@pytest.mark.parametrize(
    ("last", "changes", "includes_last"),
    [
        ("true", CHANGES, True),
        ("1", CHANGES, True),
        ("True", CHANGES, True),
        ("false", "", False),
        ("0", CHANGES, False),
        ("", CHANGES, False),  # missing: more changes may follow until a reply is empty
        ("", "", True),
    ],
)
def test_includes_last(last: str, changes: str, includes_last: bool) -> None:
    assert read_sync_folder_items(synced(changes, last=last)).includes_last is includes_last


def test_reply_without_changes() -> None:
    content = synced("").replace(b"<m:Changes></m:Changes>", b"")
    assert read_sync_folder_items(content) == ItemChanges("H4sI", True)


@pytest.mark.parametrize("read", [read_sync_folder_items, read_sync_folder_hierarchy])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (synced(CHANGES, state=""), "UnexpectedReply"),
        (synced("<t:Delete/>"), "UnexpectedReply"),
        (synced("<t:Create><t:Message/></t:Create>"), "UnexpectedReply"),
        (synced('<t:Delete><t:ItemId Id=""/><t:FolderId Id=""/></t:Delete>'), "UnexpectedReply"),
        (reply("SyncFolderItems", ""), "UnexpectedReply"),
        (refused("SyncFolderItems", "ErrorServerBusy"), "ErrorServerBusy"),
        (fault("ErrorSchemaValidation"), "ErrorSchemaValidation"),
        (b"<html></html>", "NotSoap"),
    ],
)
def test_invalid_sync_replies(read: object, content: bytes, code: str) -> None:
    with pytest.raises(ExchangeError) as caught:
        read(content)  # type: ignore[operator]
    assert caught.value.failure.code == code


def test_lost_sync_state() -> None:
    with pytest.raises(ExchangeError) as caught:
        read_sync_folder_items(refused("SyncFolderItems", "ErrorInvalidSyncStateData", "Invalid."))
    assert caught.value.failure == Failure(code="ErrorInvalidSyncStateData", text="Invalid.")
    assert caught.value.failure.verdict is Verdict.RESYNC


@st.composite
def item_replies(draw: st.DrawFn) -> tuple[bytes, ItemChanges]:
    changes, xml = [], ""
    for kind in draw(st.lists(st.sampled_from(ChangeKind), max_size=5)):
        change_key = draw(st.none() | _ID)
        inside = id_element("ItemId", id_ := draw(_ID), change_key)
        parent = element = read = None
        if kind in (ChangeKind.CREATE, ChangeKind.UPDATE):
            element = draw(st.sampled_from(ITEM_ELEMENTS))
            if parent := draw(st.none() | _ID):
                inside += id_element("ParentFolderId", parent, "other")
            inside = f"<t:{element}>{inside}<t:ConversationId Id='c'/></t:{element}>"
        elif kind is ChangeKind.READ_FLAG:
            read = draw(st.booleans())
            inside += f"<t:IsRead>{str(read).lower()}</t:IsRead>"
        xml += f"<t:{kind}>{inside}</t:{kind}>"
        changes.append(
            Change(
                kind=kind,
                item_id=id_,
                change_key=change_key,
                element=element,
                parent_folder_id=parent,
                is_read=read,
            )
        )
    state, last = draw(_ID), draw(st.booleans())
    content = synced(xml, state=state, last=str(last).lower())
    return content, ItemChanges(state, last, tuple(changes))


@settings(deadline=None)
@given(variants(item_replies()))
def test_any_variant_of_item_changes(case: tuple[bytes, ItemChanges]) -> None:
    content, changes = case
    assert read_sync_folder_items(content) == changes


@st.composite
def folder_replies(draw: st.DrawFn) -> tuple[bytes, FolderChanges]:
    changes, xml = [], ""
    for kind in draw(st.lists(st.sampled_from(list(ChangeKind)[:3]), max_size=5)):
        change_key = draw(st.none() | _ID)
        inside = id_element("FolderId", id_ := draw(_ID), change_key)
        element = total = None
        if kind is not ChangeKind.DELETE:
            element, total = draw(st.sampled_from(FOLDER_ELEMENTS)), draw(st.integers(0, 10**6))
            inside = f"<t:{element}>{inside}<t:TotalCount>{total}</t:TotalCount></t:{element}>"
        xml += f"<t:{kind}>{inside}</t:{kind}>"
        changes.append(
            FolderChange(kind=kind, folder_id=id_, change_key=change_key, element=element, total_count=total)
        )
    state, last = draw(_ID), draw(st.booleans())
    content = synced(xml, state=state, last=str(last).lower(), what="Folder")
    return content, FolderChanges(state, last, tuple(changes))


@settings(deadline=None)
@given(variants(folder_replies()))
def test_any_variant_of_folder_changes(case: tuple[bytes, FolderChanges]) -> None:
    content, changes = case
    assert read_sync_folder_hierarchy(content) == changes
