"""Who may do what: scopes, delegates, EWS switched off, distribution groups; and the control interface to them."""

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


class Office:
    def __init__(self) -> None:
        self.client = Client()
        self.anna, self.ben = self.client.mailboxes[:2]
        self.control = Control(self.client.exchange, Traffic(self.client.mailboxes, 0, Random(1)), Random(1))

    def order(self, path: str, **order: object) -> Any:
        reply = self.control.handle("POST", path, json.dumps(order).encode(), self.client.now)
        assert isinstance(reply.body, bytes)
        assert reply.status == 200, reply.body
        return json.loads(reply.body)

    def get_folder(self, folder: str, mailbox: Mailbox, **options: Any) -> Reply:
        return self.client.post(get_folder(folder, mailbox), anchor=mailbox.address, **options)


def of(folder: str, mailbox: Mailbox) -> str:
    owner = f"<t:Mailbox><t:EmailAddress>{mailbox.address}</t:EmailAddress></t:Mailbox>"
    return f'<t:DistinguishedFolderId Id="{folder}">{owner}</t:DistinguishedFolderId>'


def get_folder(folder: str, mailbox: Mailbox) -> str:
    shape = "<m:FolderShape><t:BaseShape>IdOnly</t:BaseShape></m:FolderShape>"
    return f"<m:GetFolder>{shape}<m:FolderIds>{of(folder, mailbox)}</m:FolderIds></m:GetFolder>"


def test_a_delegate_reads_what_was_granted_and_nothing_else() -> None:
    office = Office()
    assert code(office.get_folder("inbox", office.anna)) == "ErrorFolderNotFound"
    rights = office.order("/rights", mailbox=office.anna.address, folders=["inbox"])["rights"]
    assert rights["folders"] == [
        {"account": office.client.settings.user, "mailbox": office.anna.address, "folders": ["inbox"]}
    ]
    assert code(office.get_folder("inbox", office.anna)) == "NoError"
    assert code(office.get_folder("contacts", office.anna)) == "ErrorFolderNotFound"
    assert code(office.get_folder("inbox", office.ben)) == "ErrorFolderNotFound"
    # Who impersonates has the rights of whom it impersonates.
    assert (
        code(office.get_folder("inbox", office.anna, impersonate=office.ben.address)) == "ErrorFolderNotFound"
    )
    office.order("/rights", mailbox=office.anna.address, folders=[])
    assert code(office.get_folder("inbox", office.anna)) == "ErrorFolderNotFound"


def test_everybody_sees_a_calendar_and_nothing_in_it() -> None:
    office = Office()
    client, anna = office.client, office.anna
    office.order("/events", mailbox=anna.address, kind="FreeBusyChangedEvent")
    calendar = anna.distinguished("calendar")
    (item, *_) = calendar.items

    def answers(anchor: str, **options: Any) -> list[str]:
        by_id = f'<t:FolderId Id="{calendar.id}"/>'
        bodies = [
            get_folder("calendar", anna),
            *(find_item(folder) for folder in (of("calendar", anna), by_id)),
            get_item(item),
            subscribe_body(folders=of("calendar", anna)),
        ]
        return [code(client.post(body, anchor=anchor, **options)) for body in bodies]

    denied = [*["ErrorAccessDenied"] * 3, "ErrorSubscriptionDelegateAccessNotSupported"]
    assert answers(anna.address) == ["NoError", *denied]
    assert answers(anna.address, impersonate=office.ben.address) == ["NoError", *denied]
    rights = office.order("/rights", mailbox=anna.address, free_busy=False)["rights"]
    assert rights["without_free_busy"] == [anna.address]
    unseen = ["ErrorFolderNotFound", "ErrorFolderNotFound", *denied[1:]]
    assert answers(anna.address) == unseen
    office.order("/rights", mailbox=anna.address, folders=["calendar"])
    assert answers(anna.address) == ["NoError"] * 5


def find_item(folder: str) -> str:
    shape = "<m:ItemShape><t:BaseShape>IdOnly</t:BaseShape></m:ItemShape>"
    view = '<m:IndexedPageItemView MaxEntriesReturned="1" Offset="0" BasePoint="Beginning"/>'
    parents = f"<m:ParentFolderIds>{folder}</m:ParentFolderIds>"
    return f'<m:FindItem Traversal="Shallow">{shape}{view}{parents}</m:FindItem>'


def get_item(item: str) -> str:
    shape = "<m:ItemShape><t:BaseShape>IdOnly</t:BaseShape></m:ItemShape>"
    return f'<m:GetItem>{shape}<m:ItemIds><t:ItemId Id="{item}"/></m:ItemIds></m:GetItem>'


def test_a_delegate_subscribes_and_is_told_of_that_folder_alone() -> None:
    office = Office()
    client, anna = office.client, office.anna
    body = subscribe_body(folders=of("inbox", anna))
    assert code(client.post(body, anchor=anna.address)) == "ErrorSubscriptionDelegateAccessNotSupported"
    office.order("/rights", mailbox=anna.address, folders=["inbox"])
    reply = client.post(body, anchor=anna.address, affinity=True)
    assert code(reply) == "NoError"
    (subscription,) = client.exchange.subscriptions
    assert subscription.mailbox == anna.address
    stream: Any = client.post(stream_body([subscription.id]), anchor=anna.address, affinity=True)
    reader = Reader(client, stream.body, stream)
    reader.read()
    office.order("/events", mailbox=anna.address, kind="NewMailEvent")
    office.order("/events", mailbox=anna.address, kind="FreeBusyChangedEvent")
    assert reader.read() == ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]


def test_a_subscription_is_to_folders_of_one_mailbox() -> None:
    office = Office()
    for mailbox in (office.anna, office.ben):
        office.order("/rights", mailbox=mailbox.address, folders=["*"])
    both = of("inbox", office.anna) + of("inbox", office.ben)
    reply = office.client.post(subscribe_body(folders=both), anchor=office.anna.address)
    assert code(reply) == "ErrorInvalidSubscriptionRequest"
    # Without folders it would be about the account's own mailbox, and the service account has none.
    assert code(office.client.post(subscribe_body())) == "ErrorMissingEmailAddress"


def test_a_mailbox_leaves_the_scope() -> None:
    office = Office()
    who = {"impersonate": office.anna.address}
    assert code(office.get_folder("inbox", office.anna, **who)) == "NoError"
    office.order("/rights", mailbox=office.anna.address, in_scope=False)
    assert code(office.get_folder("inbox", office.anna, **who)) == "500 ErrorImpersonateUserDenied"
    office.order("/rights", mailbox=office.anna.address, in_scope=True)
    assert code(office.get_folder("inbox", office.anna, **who)) == "NoError"


def test_ews_switched_off_for_a_mailbox() -> None:
    office = Office()
    office.order("/rights", mailbox=office.anna.address, ews=False)
    assert office.get_folder("inbox", office.anna, impersonate=office.anna.address).status == 403
    assert office.get_folder("inbox", office.ben, impersonate=office.ben.address).status == 200


def test_other_accounts_log_in_and_impersonate_nobody() -> None:
    office = Office()
    password = office.client.settings.password
    login = office.client.exchange.authenticator.scheme.login(None)
    assert login.check(basic(office.ben.address, password), NOON) == Admitted(office.ben.address, "basic")
    account = {"account": office.ben.address}
    assert code(office.get_folder("inbox", office.ben, **account)) == "NoError"
    denied = office.get_folder("inbox", office.anna, impersonate=office.anna.address, **account)
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


def test_groups() -> None:
    office = Office()
    client = office.client
    team = expand(client, "TEAM-EX01@contoso.example")
    assert isinstance(team, list)
    assert {kind for _, kind in team} == {"Mailbox"}
    assert client.exchange.directory.outsider not in dict(team)
    office.order("/groups", address="Sales@contoso.example", members=[office.anna.address, "x@other.example"])
    ring = ["sales@contoso.example", "ring@contoso.example"]
    told = office.order("/groups", address="ring@contoso.example", members=ring)
    assert told["groups"]["sales@contoso.example"] == [office.anna.address, "x@other.example"]
    assert expand(client, "sales@contoso.example") == [
        (office.anna.address, "Mailbox"),
        ("x@other.example", "Contact"),
    ]
    assert expand(client, "ring@contoso.example") == [
        ("sales@contoso.example", "PublicDL"),
        ("ring@contoso.example", "PublicDL"),
    ]
    office.order("/groups", address="sales@contoso.example", members=None)
    assert expand(client, "sales@contoso.example") == "ErrorNameResolutionNoResults"
    assert expand(client, office.anna.address) == "ErrorNameResolutionNoResults"


@pytest.mark.parametrize(
    ("path", "order", "status"),
    [
        ("/rights", {"mailbox": "nobody@contoso.example", "ews": False}, 404),
        ("/rights", {"mailbox": "ceo@contoso.example", "ewz": False}, 400),
        ("/groups", {"address": "x@contoso.example"}, 400),
    ],
)
def test_orders_that_make_no_sense(path: str, order: object, status: int) -> None:
    office = Office()
    assert office.control.handle("POST", path, json.dumps(order).encode(), office.client.now).status == status
