"""Verification of must_deny mailboxes, on a virtual clock, against a scripted server."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest
import structlog.testing
import trio
import trio.testing

from listener.access import AccessKind, AccessRule
from listener.build import discovery
from listener.build import scope as assembled
from listener.config import parse
from listener.ews.codes import Failure
from listener.ews.soap import acting_as, owner_of_folders
from listener.preflight.scope import Finding, Scope
from tests.ews.samples import refused, reply
from tests.exchange.test_client import access

URL = "https://mail.example/EWS/Exchange.asmx"
FOLDER = '<m:Folders><t:Folder><t:FolderId Id="i"/></t:Folder></m:Folders>'
SEEN = reply(
    "GetFolder",
    '<m:GetFolderResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
    f"{FOLDER}</m:GetFolderResponseMessage>",
)


def items_page(items: str) -> bytes:
    return reply(
        "FindItem",
        '<m:FindItemResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f'<m:RootFolder IncludesLastItemInRange="true"><t:Items>{items}</t:Items></m:RootFolder>'
        "</m:FindItemResponseMessage>",
    )


ITEM = '<t:Message><t:ItemId Id="i"/></t:Message>'
SUBSCRIBED = reply(
    "Subscribe",
    '<m:SubscribeResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
    "<m:SubscriptionId>s</m:SubscriptionId></m:SubscribeResponseMessage>",
)
UNSUBSCRIBED = reply(
    "Unsubscribe",
    '<m:UnsubscribeResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
    "</m:UnsubscribeResponseMessage>",
)


class Server(httpx.AsyncBaseTransport):
    """A scripted server. `codes` has the response code by mailbox, `host/mailbox`, `delegate/mailbox` or
    `delegate/mailbox/folder`, each optionally with `#` and an operation. Without a code, the request succeeds.
    `items` are the items of each folder."""

    def __init__(self, codes: Mapping[str, str] | None = None, /, items: str = ITEM, **more: str) -> None:
        self.codes = {**(codes or {}), **more}
        self.items = items
        self.requests: list[tuple[float, str]] = []
        self.bodies: list[bytes] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        self.bodies.append(body)
        operation = next(each for each in OPERATIONS if f"<m:{each}".encode() in body)
        if (impersonated := acting_as(body)) is not None:
            name = impersonated.value
            keys = [name, f"{request.url.host}/{name}"]
        elif operation == "Unsubscribe":
            return httpx.Response(200, stream=httpx.ByteStream(UNSUBSCRIBED))
        else:
            owner = owner_of_folders(body)
            assert owner is not None
            name = owner
            keys = [
                f"delegate/{owner}",
                *(f"delegate/{owner}/{each}" for each in FOLDERS if f'"{each}"'.encode() in body),
            ]
        self.requests.append((round(trio.current_time()), name))
        keys = [*(f"{key}#{operation}" for key in keys), *keys]
        code = next((self.codes[key] for key in keys if key in self.codes), None)
        good = {"GetFolder": SEEN, "FindItem": items_page(self.items), "Subscribe": SUBSCRIBED}
        content = good[operation] if code is None else refused(operation, code)
        return httpx.Response(200, stream=httpx.ByteStream(content))


OPERATIONS = ("GetFolder", "FindItem", "Subscribe", "Unsubscribe")
FOLDERS = ("inbox", "calendar")
DELEGATE = AccessRule("delegate", folders=("inbox",))


def scope(
    server: Server,
    *mailboxes: str,
    lost: Sequence[str] = (),
    interval: float = 86400.0,
    urls: Sequence[str] = (URL,),
    ways: Sequence[AccessRule] = (AccessRule(),),
) -> Scope:
    async def places(requests: Sequence[str]) -> Mapping[str, Sequence[str] | Failure]:
        return {m: Failure(code="InvalidUser") if m in lost else urls for m in requests}

    return Scope(
        mailboxes=mailboxes,
        access=access(transport=server),
        version="Exchange2013_SP1",
        places=places,
        ways=lambda _: ways,
        interval=interval,
    )


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        (None, Finding.REACHED),
        ("ErrorImpersonateUserDenied", Finding.REFUSED),
        ("ErrorImpersonationDenied", Finding.REFUSED),
        ("ErrorAccessDenied", Finding.NOT_PROVED),
        ("ErrorFolderNotFound", Finding.NOT_PROVED),
        ("ErrorImpersonationFailed", Finding.NOT_PROVED),
        ("ErrorNonExistentMailbox", Finding.NOT_PROVED),
        ("ErrorInternalServerError", Finding.NOT_PROVED),
        ("ErrorUnknownCode", Finding.NOT_PROVED),
    ],
)
async def test_findings_by_impersonation(
    code: str | None, finding: Finding, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(**({"ceo": code} if code else {}))
    (attempt,) = await scope(server, "ceo").prove()
    assert attempt.finding is finding


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        (None, Finding.REACHED),
        ("ErrorAccessDenied", Finding.REFUSED),
        ("ErrorFolderNotFound", Finding.REFUSED),
        ("ErrorItemNotFound", Finding.REFUSED),
        ("ErrorNonExistentMailbox", Finding.NOT_PROVED),
        ("ErrorInternalServerError", Finding.NOT_PROVED),
        ("ErrorImpersonateUserDenied", Finding.NOT_PROVED),
    ],
)
async def test_findings_as_a_delegate(
    code: str | None, finding: Finding, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server({"delegate/ceo": code} if code else {})
    (attempt,) = await scope(server, "ceo", ways=[DELEGATE]).prove()
    assert attempt.finding is finding
    assert not [body for body in server.bodies if b"Subscribe" in body]  # a visible item is enough


CALENDAR = AccessRule("delegate", folders=("calendar",))


async def test_calendar_with_availability_only_is_not_reached(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With *Default* AvailabilityOnly, GetFolder succeeds, but FindItem and Subscribe are denied."""
    codes = {
        "delegate/ceo/inbox": "ErrorFolderNotFound",
        "delegate/ceo/calendar#FindItem": "ErrorAccessDenied",
        "delegate/ceo/calendar#Subscribe": "ErrorSubscriptionDelegateAccessNotSupported",
    }
    (attempt,) = await scope(Server(codes), "ceo", ways=(DELEGATE, CALENDAR)).prove()
    assert attempt.finding is Finding.REFUSED


@pytest.mark.parametrize(
    ("items", "subscribes", "finding", "operation"),
    [
        (ITEM, False, Finding.REACHED, "FindItem"),
        ("", True, Finding.REACHED, "Subscribe"),
        ("", False, Finding.NOT_PROVED, "FindItem"),
    ],
)
async def test_folder_without_visible_items_is_tested_by_a_subscription(
    items: str, subscribes: bool, finding: Finding, operation: str, autojump_clock: trio.testing.MockClock
) -> None:
    denied = {"delegate/ceo/calendar#Subscribe": "ErrorSubscriptionDelegateAccessNotSupported"}
    server = Server({} if subscribes else denied, items=items)
    with structlog.testing.capture_logs() as log:
        (attempt,) = await scope(server, "ceo", ways=[CALENDAR]).prove()
    assert (attempt.finding, attempt.operation, attempt.folder) == (finding, operation, "calendar")
    (line,) = (each for each in log if each["event"].startswith("scope."))
    assert (line["operation"], line["folder"]) == (operation, "calendar")
    assert operation in attempt.proof
    assert '"calendar"' in attempt.proof


async def test_impersonation_reaches_an_empty_folder(
    autojump_clock: trio.testing.MockClock,
) -> None:
    (attempt,) = await scope(Server(items=""), "ceo").prove()
    assert (attempt.finding, attempt.operation, attempt.folder) == (Finding.REACHED, "FindItem", "inbox")


async def test_every_kind_of_access_must_be_denied(autojump_clock: trio.testing.MockClock) -> None:
    denied = {"ceo": "ErrorImpersonateUserDenied", "delegate/ceo/inbox": "ErrorFolderNotFound"}
    ways = (AccessRule(), DELEGATE, CALENDAR)
    with structlog.testing.capture_logs() as log:
        (attempt,) = await scope(Server(denied), "ceo", ways=ways).prove()
        assert (attempt.finding, attempt.access) == (Finding.REACHED, "delegate")
        busy = Server(denied, **{"delegate/ceo/calendar": "ErrorInternalServerError"})
        (attempt,) = await scope(busy, "ceo", ways=ways).prove()
        assert attempt.finding is Finding.NOT_PROVED
        (attempt,) = await scope(Server(denied), "ceo", ways=ways[:2]).prove()
        assert attempt.finding is Finding.REFUSED
    logged = [
        (line["event"], line.get("access"), line.get("server")) for line in log if "scope" in line["event"]
    ]
    assert logged == [
        ("scope.violation", "delegate", "mail.example"),
        ("scope.not_verified", "delegate", "mail.example"),
        ("scope.verified", None, None),
    ]


async def test_every_server_must_deny_access(autojump_clock: trio.testing.MockClock) -> None:
    urls = [URL, URL.replace("mail", "other")]
    denied = "ErrorImpersonateUserDenied"
    (attempt,) = await scope(Server({"mail.example/ceo": denied}), "ceo", urls=urls).prove()
    assert (attempt.finding, attempt.server) == (Finding.REACHED, "other.example")
    (attempt,) = await scope(Server(ceo=denied), "ceo", urls=urls).prove()
    assert attempt.finding is Finding.REFUSED


async def test_no_url_or_no_rule_is_not_proved(autojump_clock: trio.testing.MockClock) -> None:
    for untested in (scope(Server(), "ceo", urls=()), scope(Server(), "ceo", ways=())):
        (attempt,) = await untested.prove()
        assert attempt.finding is Finding.NOT_PROVED


def from_configuration(mailboxes: str, *more: str) -> Scope:
    text = "\n".join(
        [
            '[auth]\nkind = "ntlm"\nuser = "u"\npassword = "p"\n[handlers.log]\nuse = "log"',
            '[impersonation]\nmust_deny = ["ceo@b.c"]',
            "[mailboxes]",
            mailboxes,
            *more,
        ]
    )
    config = parse(tomllib.loads(text), Path("/nowhere"))
    return assembled(config, access(), discovery(config, access()))


GROUPS = [
    f'[[groups]]\news_url = "https://{host}/EWS/Exchange.asmx"\nname = "{name}"\nmailboxes = ["{name}@b.c"]'
    for host, name in (("one.example", "x"), ("two.example", "y"), ("one.example", "z"))
]


async def test_urls_of_groups_are_tried_without_a_global_url() -> None:
    off = "[exchange]\nautodiscover = false"
    configured = from_configuration("", off, *GROUPS)
    assert await configured.places(["ceo@b.c"]) == {
        "ceo@b.c": ("https://one.example/EWS/Exchange.asmx", "https://two.example/EWS/Exchange.asmx")
    }
    configured = from_configuration("", f'{off}\news_url = "{URL}"', *GROUPS)
    assert await configured.places(["ceo@b.c"]) == {"ceo@b.c": (URL,)}


@pytest.mark.parametrize(
    ("mailboxes", "ways"),
    [
        ('addresses = ["a@b.c"]', [("impersonation", None)]),
        (
            'access = "delegate"\naddresses = ["a@b.c"]\n[subscription]\nfolders = ["inbox", "calendar"]',
            [("delegate", ("inbox",)), ("delegate", ("calendar",))],
        ),
        (
            'addresses = ["a@b.c"]\noverrides = [{addresses = ["b@b.c"], access = "delegate", folders = ["calendar"]}]',  # noqa: E501
            [("impersonation", None), ("delegate", ("inbox",)), ("delegate", ("calendar",))],
        ),
        (
            'access = "own"\naddresses = ["a@b.c"]',
            [("impersonation", None), ("delegate", ("inbox",))],
        ),
        (
            'addresses = ["a@b.c"]\n[[mailboxes.overrides]]\naddresses = ["b@b.c"]\naccess = "own"',
            [("impersonation", None), ("delegate", ("inbox",))],
        ),
    ],
)
def test_access_rules_are_those_of_the_configuration(
    mailboxes: str, ways: list[tuple[AccessKind, tuple[str, ...] | None]]
) -> None:
    exchange = f'[exchange]\news_url = "{URL}"'
    assert [(way.kind, way.folders) for way in from_configuration(mailboxes, exchange).ways(URL)] == ways


def test_application_is_not_tested_as_a_delegate() -> None:
    server = '[[servers]]\nhosts = ["*.cloud.example"]\nauth = {kind = "oauth", managed_identity = true}'
    mailboxes = 'access = "delegate"\naddresses = ["a@b.c"]\n[subscription]\nfolders = ["inbox"]'
    ways = from_configuration(mailboxes, server, f'[exchange]\news_url = "{URL}"').ways
    assert [way.kind for way in ways(URL)] == ["delegate"]
    assert [way.kind for way in ways("https://x.cloud.example/EWS/Exchange.asmx")] == ["impersonation"]


async def test_log_has_each_mailbox_not_denied_or_one_success(
    autojump_clock: trio.testing.MockClock,
) -> None:
    denied = "ErrorImpersonateUserDenied"
    with structlog.testing.capture_logs() as log:
        await scope(Server(ceo=denied, cfo=denied), "ceo", "cfo").prove()
        await scope(Server(ceo=denied), "ceo", "cfo", "cto", lost=["cto"]).prove()
    logged = [(line["event"], line.get("mailbox")) for line in log if line["event"].startswith("scope.")]
    assert logged[0] == ("scope.verified", None)
    assert sorted(logged[1:]) == [("scope.not_verified", "cto"), ("scope.violation", "cfo")]


async def test_verification_is_repeated_daily_and_sooner_while_not_proved(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(ceo="ErrorInternalServerError")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scope(server, "ceo").watch)
        await trio.sleep(500)
        server.codes["ceo"] = "ErrorImpersonateUserDenied"
        await trio.sleep(200_000)
        nursery.cancel_scope.cancel()
    assert [time for time, _ in server.requests] == [0, 60, 180, 420, 900, 87300, 173700]


async def test_nothing_is_verified_without_must_deny_mailboxes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server()
    await scope(server).watch()
    assert server.requests == []
