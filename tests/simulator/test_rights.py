"""Access rights: scopes, delegates, disabled EWS, distribution groups, and how the control API sets them."""

import json
from random import Random
from typing import Any

import pytest

from listener.simulator.auth import Admitted
from listener.simulator.control import Control
from listener.simulator.http import Reply
from listener.simulator.mailstore import Mailbox
from listener.simulator.traffic import Traffic
from tests.simulator.client import NOON, Client, Reader, T, basic, code, root, stream_body, subscribe_body


class Organization:
    def __init__(self) -> None:
        self.client = Client()
        self.anna, self.ben = self.client.mailboxes[:2]
        self.control = Control(self.client.exchange, Traffic(self.client.mailboxes, 0, Random(1)), Random(1))

    def post(self, path: str, **post: object) -> Any:
        reply = self.control.handle("POST", path, json.dumps(post).encode(), self.client.now)
        assert isinstance(reply.body, bytes)
        assert reply.status == 200, reply.body
        return json.loads(reply.body)

    def get_folder(self, folder: str, mailbox: Mailbox, **options: Any) -> Reply:
        return self.client.post(get_folder(folder, mailbox), anchor=mailbox.address, **options)


def distinguished_folder(folder: str, mailbox: Mailbox) -> str:
    owner = f"<t:Mailbox><t:EmailAddress>{mailbox.address}</t:EmailAddress></t:Mailbox>"
    return f'<t:DistinguishedFolderId Id="{folder}">{owner}</t:DistinguishedFolderId>'


def get_folder(folder: str, mailbox: Mailbox) -> str:
    shape = "<m:FolderShape><t:BaseShape>IdOnly</t:BaseShape></m:FolderShape>"
    return f"<m:GetFolder>{shape}<m:FolderIds>{distinguished_folder(folder, mailbox)}</m:FolderIds></m:GetFolder>"


def test_delegate_reads_only_granted_folders() -> None:
    org = Organization()
    assert code(org.get_folder("inbox", org.anna)) == "ErrorFolderNotFound"
    rights = org.post("/rights", mailbox=org.anna.address, folders=["inbox"])["rights"]
    assert rights["folders"] == [
        {
            "account": org.client.settings.user,
            "mailbox": org.anna.address,
            "folders": ["inbox"],
        }
    ]
    assert code(org.get_folder("inbox", org.anna)) == "NoError"
    assert code(org.get_folder("contacts", org.anna)) == "ErrorFolderNotFound"
    assert code(org.get_folder("inbox", org.ben)) == "ErrorFolderNotFound"
    # An impersonating account has the rights of the impersonated user.
    assert code(org.get_folder("inbox", org.anna, impersonate=org.ben.address)) == "ErrorFolderNotFound"
    org.post("/rights", mailbox=org.anna.address, folders=[])
    assert code(org.get_folder("inbox", org.anna)) == "ErrorFolderNotFound"


def test_calendar_folder_is_visible_but_not_its_items() -> None:
    org = Organization()
    client, anna = org.client, org.anna
    org.post("/events", mailbox=anna.address, kind="FreeBusyChangedEvent")
    calendar = anna.distinguished("calendar")
    (item, *_) = calendar.items

    def answers(anchor: str, **options: Any) -> list[str]:
        by_id = f'<t:FolderId Id="{calendar.id}"/>'
        bodies = [
            get_folder("calendar", anna),
            *(find_item(folder) for folder in (distinguished_folder("calendar", anna), by_id)),
            get_item(item),
            subscribe_body(folders=distinguished_folder("calendar", anna)),
        ]
        return [code(client.post(body, anchor=anchor, **options)) for body in bodies]

    denied = [*["ErrorAccessDenied"] * 3, "ErrorSubscriptionDelegateAccessNotSupported"]
    assert answers(anna.address) == ["NoError", *denied]
    assert answers(anna.address, impersonate=org.ben.address) == ["NoError", *denied]
    rights = org.post("/rights", mailbox=anna.address, free_busy=False)["rights"]
    assert rights["without_free_busy"] == [anna.address]
    unseen = ["ErrorFolderNotFound", "ErrorFolderNotFound", *denied[1:]]
    assert answers(anna.address) == unseen
    org.post("/rights", mailbox=anna.address, folders=["calendar"])
    assert answers(anna.address) == ["NoError"] * 5


def find_item(folder: str) -> str:
    shape = "<m:ItemShape><t:BaseShape>IdOnly</t:BaseShape></m:ItemShape>"
    view = '<m:IndexedPageItemView MaxEntriesReturned="1" Offset="0" BasePoint="Beginning"/>'
    parents = f"<m:ParentFolderIds>{folder}</m:ParentFolderIds>"
    return f'<m:FindItem Traversal="Shallow">{shape}{view}{parents}</m:FindItem>'


def get_item(item: str) -> str:
    shape = "<m:ItemShape><t:BaseShape>IdOnly</t:BaseShape></m:ItemShape>"
    return f'<m:GetItem>{shape}<m:ItemIds><t:ItemId Id="{item}"/></m:ItemIds></m:GetItem>'


def test_delegate_subscription_reports_only_that_folder() -> None:
    org = Organization()
    client, anna = org.client, org.anna
    body = subscribe_body(folders=distinguished_folder("inbox", anna))
    assert code(client.post(body, anchor=anna.address)) == "ErrorSubscriptionDelegateAccessNotSupported"
    org.post("/rights", mailbox=anna.address, folders=["inbox"])
    reply = client.post(body, anchor=anna.address, affinity=True)
    assert code(reply) == "NoError"
    (subscription,) = client.exchange.subscriptions
    assert subscription.mailbox == anna.address
    stream: Any = client.post(stream_body([subscription.id]), anchor=anna.address, affinity=True)
    reader = Reader(client, stream.body, stream)
    reader.read()
    org.post("/events", mailbox=anna.address, kind="NewMailEvent")
    org.post("/events", mailbox=anna.address, kind="FreeBusyChangedEvent")
    assert reader.read() == ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]


def test_subscription_needs_folders_of_one_mailbox() -> None:
    org = Organization()
    for mailbox in (org.anna, org.ben):
        org.post("/rights", mailbox=mailbox.address, folders=["*"])
    both = distinguished_folder("inbox", org.anna) + distinguished_folder("inbox", org.ben)
    reply = org.client.post(subscribe_body(folders=both), anchor=org.anna.address)
    assert code(reply) == "ErrorInvalidSubscriptionRequest"
    # Without folders, the account's own mailbox would be subscribed, and the service account has none.
    assert code(org.client.post(subscribe_body())) == "ErrorMissingEmailAddress"


def test_remove_a_mailbox_from_the_scope() -> None:
    org = Organization()
    impersonated = {"impersonate": org.anna.address}
    assert code(org.get_folder("inbox", org.anna, **impersonated)) == "NoError"
    org.post("/rights", mailbox=org.anna.address, in_scope=False)
    assert code(org.get_folder("inbox", org.anna, **impersonated)) == "500 ErrorImpersonateUserDenied"
    org.post("/rights", mailbox=org.anna.address, in_scope=True)
    assert code(org.get_folder("inbox", org.anna, **impersonated)) == "NoError"


def test_ews_disabled_for_a_mailbox() -> None:
    org = Organization()
    org.post("/rights", mailbox=org.anna.address, ews=False)
    assert org.get_folder("inbox", org.anna, impersonate=org.anna.address).status == 403
    assert org.get_folder("inbox", org.ben, impersonate=org.ben.address).status == 200


def test_other_accounts_cannot_impersonate() -> None:
    org = Organization()
    password = org.client.settings.password
    login = org.client.exchange.authenticator.scheme.login(None)
    assert login.check(basic(org.ben.address, password), NOON) == Admitted(org.ben.address, "basic")
    account = {"account": org.ben.address}
    assert code(org.get_folder("inbox", org.ben, **account)) == "NoError"
    denied = org.get_folder("inbox", org.anna, impersonate=org.anna.address, **account)
    assert code(denied) == "500 ErrorImpersonateUserDenied"


def expand(client: Client, group: str) -> list[tuple[str, str]] | str:
    mailbox = f"<m:Mailbox><t:EmailAddress>{group}</t:EmailAddress></m:Mailbox>"
    reply = client.post(f"<m:ExpandDL>{mailbox}</m:ExpandDL>")
    if code(reply) != "NoError":
        return code(reply)
    return [
        (each.findtext(f"{{{T}}}EmailAddress", ""), each.findtext(f"{{{T}}}MailboxType", ""))
        for each in root(reply).iter(f"{{{T}}}Mailbox")
    ]


def test_distribution_groups() -> None:
    org = Organization()
    client = org.client
    team = expand(client, "TEAM-EX01@contoso.example")
    assert isinstance(team, list)
    assert {kind for _, kind in team} == {"Mailbox"}
    assert client.exchange.directory.outsider not in dict(team)
    org.post("/groups", address="Sales@contoso.example", members=[org.anna.address, "x@other.example"])
    ring = ["sales@contoso.example", "ring@contoso.example"]
    response = org.post("/groups", address="ring@contoso.example", members=ring)
    assert response["groups"]["sales@contoso.example"] == [org.anna.address, "x@other.example"]
    assert expand(client, "sales@contoso.example") == [
        (org.anna.address, "Mailbox"),
        ("x@other.example", "Contact"),
    ]
    assert expand(client, "ring@contoso.example") == [
        ("sales@contoso.example", "PublicDL"),
        ("ring@contoso.example", "PublicDL"),
    ]
    org.post("/groups", address="sales@contoso.example", members=None)
    assert expand(client, "sales@contoso.example") == "ErrorNameResolutionNoResults"
    assert expand(client, org.anna.address) == "ErrorNameResolutionNoResults"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rights", {"mailbox": "unknown@contoso.example", "ews": False}, 404),
        ("/rights", {"mailbox": "ceo@contoso.example", "ewz": False}, 400),
        ("/groups", {"address": "x@contoso.example"}, 400),
    ],
)
def test_invalid_requests(path: str, body: object, status: int) -> None:
    org = Organization()
    assert org.control.handle("POST", path, json.dumps(body).encode(), org.client.now).status == status
