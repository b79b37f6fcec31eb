from base64 import b64decode

import pytest

from listener.simulator.mailstore import Mailbox
from tests.simulator.client import NAMES, Client, M, T, code, message, root
from tests.xsd import validate, xsd_available


def get_folder(ids: str, shape: str = "<t:BaseShape>Default</t:BaseShape>") -> str:
    return (
        f"<m:GetFolder><m:FolderShape>{shape}</m:FolderShape><m:FolderIds>{ids}</m:FolderIds></m:GetFolder>"
    )


def find_folder(ids: str, traversal: str = "Deep", view: str = "") -> str:
    return (
        f'<m:FindFolder Traversal="{traversal}"><m:FolderShape><t:BaseShape>AllProperties</t:BaseShape>'
        f"</m:FolderShape>{view}<m:ParentFolderIds>{ids}</m:ParentFolderIds></m:FindFolder>"
    )


def find_item(ids: str, view: str = "") -> str:
    return (
        '<m:FindItem Traversal="Shallow"><m:ItemShape><t:BaseShape>IdOnly</t:BaseShape></m:ItemShape>'
        f"{view}<m:ParentFolderIds>{ids}</m:ParentFolderIds></m:FindItem>"
    )


def get_item(ids: str, shape: str = "<t:BaseShape>AllProperties</t:BaseShape>") -> str:
    return f"<m:GetItem><m:ItemShape>{shape}</m:ItemShape><m:ItemIds>{ids}</m:ItemIds></m:GetItem>"


def convert(id_: str, target: str) -> str:
    return (
        f'<m:ConvertId DestinationFormat="{target}"><m:SourceIds>'
        f'<t:AlternateId Format="EwsId" Id="{id_}" Mailbox="a@b.example"/></m:SourceIds></m:ConvertId>'
    )


def named(name: str) -> str:
    return f'<t:DistinguishedFolderId Id="{name}"/>'


def with_mail(client: Client) -> Mailbox:
    mailbox = client.mailboxes[0]
    for number in range(3):
        mailbox.deliver(f"Mail <{number}>", "bob@fabrikam.example", client.now + number)
    return mailbox


def test_get_folder_by_distinguished_id_and_id() -> None:
    client = Client()
    alice = with_mail(client)
    inbox = alice.distinguished("inbox")
    for ids in (named("inbox"), f'<t:FolderId Id="{inbox.id}"/>'):
        folder = message(client.post(get_folder(ids), impersonate=alice.address)).find(
            "m:Folders/t:Folder", NAMES
        )
        assert folder is not None
        assert folder.find("t:FolderId", NAMES).get("Id") == inbox.id  # type: ignore[union-attr]
        properties = {child.tag.removeprefix(f"{{{T}}}"): child.text for child in folder}
        assert properties == {
            "FolderId": None, "DisplayName": "Inbox", "TotalCount": "3", "ChildFolderCount": "0", "UnreadCount": "3",
        }  # fmt: skip


def test_change_properties_of_a_folder() -> None:
    client = Client()
    alice = with_mail(client)
    shape = (
        '<t:BaseShape>IdOnly</t:BaseShape><t:AdditionalProperties><t:ExtendedFieldURI PropertyTag="0x670a" '
        'PropertyType="SystemTime"/><t:ExtendedFieldURI PropertyTag="0x670b" PropertyType="Integer"/>'
        "</t:AdditionalProperties>"
    )

    def values() -> list[str | None]:
        reply = client.post(get_folder(named("inbox"), shape), impersonate=alice.address)
        return [value.text for value in root(reply).iter(f"{{{T}}}Value")]

    assert values() == ["2023-11-14T22:13:22Z", "0"]
    item = next(iter(alice.distinguished("inbox").items.values()))
    alice.purge(item, client.now + 60)
    assert values() == ["2023-11-14T22:13:22Z", "1"]
    (item,) = alice.latest(alice.distinguished("inbox"), 1)
    alice.edit(item, "Other", client.now + 120)
    assert values() == ["2023-11-14T22:15:20Z", "1"]
    alice.mark(item, client.now + 180, read=True)
    assert values() == ["2023-11-14T22:16:20Z", "1"]
    alice.move(item, alice.distinguished("junkemail"), client.now + 240)
    assert values() == ["2023-11-14T22:16:20Z", "2"]
    alice.rename_folder(alice.distinguished("inbox"), "In", client.now + 300)
    alice.create_folder("Projects", alice.distinguished("inbox"), client.now + 300)
    assert values() == ["2023-11-14T22:16:20Z", "2"]
    alice.move(item, alice.distinguished("inbox"), client.now + 360)
    assert values() == ["2023-11-14T22:19:20Z", "2"]


def test_one_response_message_per_id() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    ids = (
        named("inbox")
        + named("archive")
        + '<t:FolderId Id="!"/>'
        + f'<t:FolderId Id="{bob.distinguished("inbox").id}"/>'
        + f'<t:FolderId Id="{alice.distinguished("inbox").id[:-8]}AAAAAAAA"/>'
    )
    reply = client.post(get_folder(ids), impersonate=alice.address)
    assert [element.text for element in root(reply).iter(f"{{{M}}}ResponseCode")] == [
        "NoError", "ErrorFolderNotFound", "ErrorInvalidIdMalformed", "ErrorAccessDenied", "ErrorItemNotFound",
    ]  # fmt: skip


def test_find_folder() -> None:
    client = Client()
    alice = client.mailboxes[0]
    alice.create_folder("Projects", alice.distinguished("inbox"), client.now)

    def names(traversal: str, view: str = "") -> list[str | None]:
        body = find_folder(named("msgfolderroot"), traversal, view)
        reply = client.post(body, impersonate=alice.address)
        return [element.text for element in root(reply).iter(f"{{{T}}}DisplayName")]

    assert names("Deep")[:3] == ["Inbox", "Projects", "Sent Items"]
    assert names("Shallow")[:2] == ["Inbox", "Sent Items"]
    page = '<m:IndexedPageFolderView MaxEntriesReturned="2" Offset="1" BasePoint="Beginning"/>'
    assert names("Deep", page) == ["Projects", "Sent Items"]


def test_find_item_with_paging() -> None:
    client = Client()
    alice = with_mail(client)
    pages = []
    for offset in (0, 2):
        view = f'<m:IndexedPageItemView MaxEntriesReturned="2" Offset="{offset}" BasePoint="Beginning"/>'
        page = message(client.post(find_item(named("inbox"), view), impersonate=alice.address))[-1]
        ids = [element.get("Id") for element in page.iter(f"{{{T}}}ItemId")]
        pages.append((ids, page.get("IndexedPagingOffset"), page.get("IncludesLastItemInRange")))
    newest = [item.id for item in alice.latest(alice.distinguished("inbox"), 3)]
    assert pages == [(newest[:2], "2", "false"), (newest[2:], "3", "true")]


def test_get_item() -> None:
    client = Client()
    alice = with_mail(client)
    (item,) = alice.latest(alice.distinguished("inbox"), 1)
    reply = client.post(get_item(f'<t:ItemId Id="{item.id}"/>'), impersonate=alice.address)
    assert message(reply).findtext("m:Items/t:Message/t:Subject", namespaces=NAMES) == "Mail <2>"
    alice.purge(item, client.now)
    reply = client.post(get_item(f'<t:ItemId Id="{item.id}"/>'), impersonate=alice.address)
    assert code(reply) == "ErrorItemNotFound"


def test_convert_id() -> None:
    client = Client()
    inbox = client.mailboxes[0].distinguished("inbox").id
    converted = message(client.post(convert(inbox, "HexEntryId"))).find("m:AlternateId", NAMES)
    assert converted is not None
    assert converted.get("Id") == b64decode(inbox)[43:].hex().upper()
    assert code(client.post(convert("DUMMY", "EntryId"))) == "ErrorInvalidIdMalformed"
    assert code(client.post(convert(inbox, "OwaId"))) == "ErrorUnsupportedTypeForConversion"


@pytest.mark.parametrize("value", ["-1", "x"])
def test_invalid_paging_numbers(value: str) -> None:
    client = Client()
    view = f'<m:IndexedPageItemView MaxEntriesReturned="2" Offset="{value}" BasePoint="Beginning"/>'
    reply = client.post(find_item(named("inbox"), view), impersonate=client.mailboxes[0].address)
    assert code(reply) == "500 ErrorSchemaValidation"


@xsd_available
def test_replies_are_valid() -> None:
    client = Client()
    alice = with_mail(client)
    alice.save(alice.distinguished("calendar"), "IPM.Appointment", "Lunch", client.now)
    alice.save(alice.distinguished("contacts"), "IPM.Contact", "Bob", client.now)
    everything = "".join(f'<t:FolderId Id="{id_}"/>' for id_ in alice.folders)
    items = "".join(f'<t:ItemId Id="{id_}"/>' for f in alice.folders.values() for id_ in f.items)
    for body in (
        get_folder(everything, "<t:BaseShape>AllProperties</t:BaseShape>"),
        get_folder(everything + '<t:FolderId Id="!"/>'),
        find_folder(named("root")),
        find_item(everything),
        get_item(items),
        get_item(items + '<t:ItemId Id="!"/>'),
        convert(next(iter(alice.folders)), "EntryId"),
        convert("DUMMY", "EntryId"),
    ):
        element = root(client.post(body, impersonate=alice.address)).find("s:Body/*", NAMES)
        assert element is not None
        validate(element)
