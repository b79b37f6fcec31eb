"""SyncFolderItems and SyncFolderHierarchy, as clients see them."""

from collections.abc import Iterator

import pytest
from lxml import etree

from listener.simulator.mailstore import Mailbox
from listener.simulator.settings import Limits, Settings
from tests.simulator.client import NAMES, Client, T, code, message, root
from tests.simulator.test_operations import named
from tests.xsd import validate, xsd_available

TAGS = (
    '<t:AdditionalProperties><t:ExtendedFieldURI PropertyTag="0x670a" PropertyType="SystemTime"/>'
    '<t:ExtendedFieldURI PropertyTag="0x670b" PropertyType="Integer"/></t:AdditionalProperties>'
)


def sync_items(
    folder: str = named("inbox"),
    state: str | None = None,
    *,
    limit: str = "512",
    shape: str = "IdOnly",
    ignore: str = "",
) -> str:
    stated = f"<m:SyncState>{state}</m:SyncState>" if state is not None else ""
    ignored = f"<m:Ignore>{ignore}</m:Ignore>" if ignore else ""
    return (
        f"<m:SyncFolderItems><m:ItemShape><t:BaseShape>{shape}</t:BaseShape></m:ItemShape><m:SyncFolderId>{folder}"
        f"</m:SyncFolderId>{stated}{ignored}<m:MaxChangesReturned>{limit}</m:MaxChangesReturned></m:SyncFolderItems>"
    )


def sync_folders(folder: str | None, state: str | None = None, more: str = "") -> str:
    rooted = f"<m:SyncFolderId>{folder}</m:SyncFolderId>" if folder else ""
    stated = f"<m:SyncState>{state}</m:SyncState>" if state is not None else ""
    return (
        f"<m:SyncFolderHierarchy><m:FolderShape><t:BaseShape>Default</t:BaseShape>{more}</m:FolderShape>{rooted}"
        f"{stated}</m:SyncFolderHierarchy>"
    )


class SyncClient:
    """A client of one mailbox that keeps its SyncState."""

    def __init__(self, client: Client, mailbox: Mailbox) -> None:
        self.state: str | None = None
        self.last = ""
        self._client = client
        self._mailbox = mailbox

    def items(self, **given: str) -> list[str]:
        """Return the changes as short lines: the kind, the element, its children."""
        return self._ask(sync_items(state=self.state, **given), "IncludesLastItemInRange")

    def folders(self, folder: str | None) -> list[str]:
        return self._ask(sync_folders(folder, self.state), "IncludesLastFolderInRange")

    def _ask(self, body: str, last: str) -> list[str]:
        reply = self._client.post(body, impersonate=self._mailbox.address)
        assert code(reply) == "NoError"
        reply.finish()
        response = message(reply)
        self.state = response.findtext("m:SyncState", namespaces=NAMES)
        self.last = response.findtext(f"m:{last}", "", namespaces=NAMES)
        return list(format_changes(response.iterfind("m:Changes/*", NAMES)))


def format_changes(changes: Iterator[etree._Element]) -> Iterator[str]:
    for change in changes:
        names = [etree.QName(element).localname for element in change.iter() if element is not change]
        texts = [element.text for element in change.iter() if element.text]
        yield " ".join([etree.QName(change).localname, *names, *texts])


def test_sync_folder_items() -> None:
    client = Client()
    alice = client.mailboxes[0]
    for _ in range(3):
        alice.deliver("Hello", "bob@fabrikam.example", client.now)
    syncer = SyncClient(client, alice)
    assert syncer.items(limit="2") == ["Create Message ItemId"] * 2
    assert syncer.last == "false"
    assert syncer.items(limit="2") == ["Create Message ItemId"]
    assert syncer.last == "true"
    assert syncer.items() == []
    first, second, third = list(alice.distinguished("inbox").items.values())
    alice.edit(first, "Changed", client.now)
    alice.mark(second, client.now, read=True)
    alice.purge(third, client.now)
    assert syncer.items(shape="Default") == [
        "Delete ItemId",
        "ReadFlagChange ItemId IsRead true",
        "Update Message ItemId Subject DateTimeReceived IsRead Changed 2023-11-14T22:13:20Z false",
    ]


def test_ids_match_the_items() -> None:
    client = Client()
    alice = client.mailboxes[0]
    inbox = alice.distinguished("inbox")
    for number in range(3):
        alice.deliver(f"Mail {number}", "bob@fabrikam.example", client.now)
    alice.mark(alice.latest(inbox, 1)[0], client.now, read=True)
    reply = client.post(sync_items(), impersonate=alice.address)
    newest = alice.latest(inbox, 3)
    ids = [(each.get("Id"), each.get("ChangeKey")) for each in root(reply).iter(f"{{{T}}}ItemId")]
    assert ids == [(item.id, alice.change_key(item)) for item in newest]
    ignore = f'<t:ItemId Id="{newest[0].id}"/>'
    reply = client.post(sync_items(ignore=ignore), impersonate=alice.address)
    assert [each.get("Id") for each in root(reply).iter(f"{{{T}}}ItemId")] == [item.id for item in newest[1:]]
    state = message(reply).findtext("m:SyncState", namespaces=NAMES)
    alice.purge(newest[1], client.now)
    reply = client.post(sync_items(state=state), impersonate=alice.address)
    (gone,) = root(reply).iter(f"{{{T}}}ItemId")
    assert gone.items() == [("Id", newest[1].id)]


def test_sync_folder_hierarchy() -> None:
    client = Client()
    alice = client.mailboxes[0]
    syncer = SyncClient(client, alice)
    shape = "FolderId DisplayName TotalCount ChildFolderCount UnreadCount"
    assert f"Create Folder {shape} Inbox 0 0 0" in syncer.folders(named("msgfolderroot"))
    assert syncer.last == "true"
    alice.create_folder("Projects", alice.distinguished("inbox"), client.now)
    assert syncer.folders(named("msgfolderroot")) == [f"Create Folder {shape} Projects 0 0 0"]
    (folder,) = alice.own_folders()
    alice.rename_folder(folder, "Customers", client.now)
    assert syncer.folders(named("msgfolderroot")) == [f"Update Folder {shape} Customers 0 0 0"]
    alice.purge_folder(folder, client.now)
    assert syncer.folders(named("msgfolderroot")) == ["Delete FolderId"]
    everything = SyncClient(client, alice)
    assert len(everything.folders(None)) == len(alice.folders) - 1


def test_refused_requests() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    alice.create_folder("A", alice.distinguished("inbox"), client.now)
    (gone,) = alice.own_folders()
    alice.purge_folder(gone, client.now)
    syncer = SyncClient(client, alice)
    syncer.items()

    def ask(body: str) -> str:
        reply = client.post(body, impersonate=alice.address)
        reply.finish()
        return code(reply)

    gone_id, bobs = (f'<t:FolderId Id="{id_}"/>' for id_ in (gone.id, bob.distinguished("inbox").id))
    for folder, refusal in (
        (gone_id, "ErrorSyncFolderNotFound"),
        (named("archive"), "ErrorSyncFolderNotFound"),
        (bobs, "ErrorAccessDenied"),
        ('<t:FolderId Id="!"/>', "ErrorInvalidIdMalformed"),
        ("", "500 ErrorSchemaValidation"),
    ):
        assert ask(sync_items(folder)) == refusal
        if folder:
            assert ask(sync_folders(folder)) == refusal
    for state in ("x", syncer.state):
        assert ask(sync_items(named("drafts"), state)) == "ErrorInvalidSyncStateData"
        assert ask(sync_folders(None, state)) == "ErrorInvalidSyncStateData"
    for empty in (None, "", "\n"):
        assert ask(sync_items(named("drafts"), empty)) == "NoError"


@pytest.mark.parametrize("limit", ["0", "513", "-1", "", "many"])
def test_a_page_has_from_1_to_512_changes(limit: str) -> None:
    client = Client()
    reply = client.post(sync_items(limit=limit), impersonate=client.mailboxes[0].address)
    assert code(reply) == "500 ErrorSchemaValidation"


def test_an_account_without_a_mailbox_must_name_one() -> None:
    assert code(Client().post(sync_folders(None))) == "ErrorMissingEmailAddress"


def test_concurrent_sync_calls_are_limited() -> None:
    client = Client(Settings(rate=0, limits=Limits(sync_calls=2)))
    alice, bob = client.mailboxes[:2]
    first = client.post(sync_items(), impersonate=alice.address)
    client.post(sync_folders(None), impersonate=alice.address)
    refused = client.post(sync_items(), impersonate=alice.address)
    assert code(refused) == "500 ErrorServerBusy"
    (wait,) = root(refused).iter(f"{{{T}}}Value")
    assert (wait.get("Name"), wait.text) == ("BackOffMilliseconds", "500")
    assert code(client.post(sync_items(), impersonate=bob.address)) == "NoError"
    first.finish()
    assert code(client.post(sync_items(), impersonate=alice.address)) == "NoError"


def test_old_states_are_refused_after_many_deletions() -> None:
    client = Client(Settings(rate=0, limits=Limits(tombstones=1)))
    alice = client.mailboxes[0]
    for _ in range(2):
        alice.deliver("Hello", "bob@fabrikam.example", client.now)
    syncer = SyncClient(client, alice)
    syncer.items()
    for item in alice.latest(alice.distinguished("inbox"), 2):
        alice.purge(item, client.now)
    reply = client.post(sync_items(state=syncer.state), impersonate=alice.address)
    assert code(reply) == "ErrorInvalidSyncStateData"


def test_fault_sync_state_lost() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    alice.deliver("Hello", "bob@fabrikam.example", client.now)
    syncer, other = SyncClient(client, alice), SyncClient(client, bob)
    syncer.items()
    other.items()
    (line,) = client.make_fault("sync_state_lost", mailbox=alice.address)
    assert (line.fault, line.mailbox) == ("sync_state_lost", alice.address)
    reply = client.post(sync_items(state=syncer.state), impersonate=alice.address)
    assert code(reply) == "ErrorInvalidSyncStateData"
    assert other.items() == []
    syncer.state = None
    assert syncer.items() == ["Create Message ItemId"]
    (line,) = client.make_fault("sync_state_lost", mailbox="*", quiet=True)
    assert (line.mailbox, line.parameters) == ("*", {"mailbox": "*", "quiet": True})
    assert syncer.items() == ["Create Message ItemId"]
    assert other.items() == []


@xsd_available
def test_replies_are_valid() -> None:
    client = Client()
    alice = client.mailboxes[0]
    inbox = alice.distinguished("inbox")
    for _ in range(4):
        alice.deliver("Hello", "bob@fabrikam.example", client.now)
    alice.save(alice.distinguished("calendar"), "IPM.Appointment", "Lunch", client.now)
    alice.save(alice.distinguished("contacts"), "IPM.Contact", "Bob", client.now)
    alice.create_folder("A", inbox, client.now)
    syncer, tree = SyncClient(client, alice), SyncClient(client, alice)
    syncer.items()
    tree.folders(named("root"))
    first, second, third, _ = alice.latest(inbox, 4)
    alice.edit(first, "Changed", client.now)
    alice.mark(second, client.now, read=True)
    alice.purge(third, client.now)
    (folder,) = alice.own_folders()
    alice.create_folder("B", inbox, client.now)
    alice.rename_folder(alice.own_folders()[1], "B2", client.now)
    alice.rename_folder(inbox, "In", client.now)
    alice.purge_folder(folder, client.now)
    bodies = [
        *(sync_items(shape=shape) for shape in ("IdOnly", "Default", "AllProperties")),
        *(sync_items(named(name), shape="Default") for name in ("calendar", "contacts", "notes")),
        sync_items(state=syncer.state, limit="1"),
        sync_items(state=syncer.state, shape="AllProperties"),
        sync_items(state="x"),
        sync_folders(named("root"), more=TAGS),
        sync_folders(None),
        sync_folders(named("root"), tree.state),
        sync_folders(named("root"), "x"),
    ]
    kinds = set()
    for body in bodies:
        reply = client.post(body, impersonate=alice.address)
        reply.finish()
        element = root(reply).find("s:Body/*", NAMES)
        assert element is not None
        validate(element)
        kinds |= {etree.QName(each).localname for each in element.iterfind(".//m:Changes/*", NAMES)}
    assert kinds == {"Create", "Update", "Delete", "ReadFlagChange"}


@xsd_available
def test_requests_are_valid() -> None:
    for body in (
        sync_items(state="x", ignore='<t:ItemId Id="x"/>'),
        sync_folders(named("root"), "x", TAGS),
    ):
        validate(etree.fromstring(f'<x xmlns:m="{NAMES["m"]}" xmlns:t="{T}">{body}</x>')[0])
