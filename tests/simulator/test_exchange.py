"""Replies of the server to single requests."""

import re

import pytest

from listener.simulator.http import HttpRequest
from listener.simulator.settings import Limits, Network, Settings
from tests.simulator.client import NAMES, Client, code, envelope, message, root, stream_body, subscribe_body
from tests.xsd import validate, xsd_available

UNKNOWN = "<m:Unsubscribe><m:SubscriptionId>bm9uc2Vuc2U=</m:SubscriptionId></m:Unsubscribe>"


def test_subscribe_and_unsubscribe() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    assert re.fullmatch(r"[A-Za-z0-9+/=]{40,}", id_)
    body = f"<m:Unsubscribe><m:SubscriptionId>{id_}</m:SubscriptionId></m:Unsubscribe>"
    assert code(client.post(body, impersonate=alice.address)) == "NoError"
    assert code(client.post(body, impersonate=alice.address)) == "ErrorSubscriptionNotFound"


def test_override_cookie_is_sent_only_with_affinity() -> None:
    client = Client()
    alice = client.mailboxes[0]

    def cookies(*, affinity: bool) -> list[str]:
        reply = client.post(subscribe_body(), impersonate=alice.address, affinity=affinity)
        return [value.partition("=")[0] for name, value in reply.headers if name == "Set-Cookie"]

    assert cookies(affinity=True) == ["exchangecookie", "X-BackEndCookie", "X-BackEndOverrideCookie"]
    assert cookies(affinity=False) == ["exchangecookie", "X-BackEndCookie"]


def test_headers_of_every_reply() -> None:
    client = Client()
    alice = client.mailboxes[0]
    headers = dict(client.post(subscribe_body(), impersonate=alice.address).headers)
    home = client.exchange.directory.home(alice)
    assert headers["Content-Type"] == "text/xml; charset=utf-8"
    assert headers["X-CalculatedBETarget"] == home
    assert headers["X-BEServer"] == headers["X-DiagInfo"] == home[:4].upper()
    assert headers["X-FEServer"] == "FE01"
    assert re.fullmatch(r"[0-9a-f-]{36}", headers["request-id"])


@pytest.mark.parametrize(
    ("impersonated", "expected"),
    [
        ("ceo@contoso.example", "500 ErrorImpersonateUserDenied"),
        ("unknown@contoso.example", "500 ErrorNonExistentMailbox"),
        (None, "ErrorMissingEmailAddress"),
    ],
)
def test_subscribe_with_impersonation(impersonated: str | None, expected: str) -> None:
    assert code(Client().post(subscribe_body(), impersonate=impersonated)) == expected


def test_impersonation_by_sid_and_upn() -> None:
    client = Client()
    alice = client.mailboxes[0]
    for tag, name in (
        ("SID", client.exchange.directory.sid(alice).upper()),
        ("PrincipalName", alice.address),
    ):
        xml = envelope(subscribe_body(), impersonate=name).replace(b"PrimarySmtpAddress", tag.encode())
        request = HttpRequest("POST", "/ews/exchange.asmx", {}, xml, client.settings.user)
        assert client.exchange.handle(request, client.now).status in (200, 500, 503)
    assert {s.mailbox for s in client.exchange.subscriptions} == {alice.address}


def test_subscribe_to_own_mailbox_without_impersonation() -> None:
    client = Client()
    ceo = client.exchange.directory.outsider
    assert code(client.post(subscribe_body(), account=ceo, anchor=ceo)) == "NoError"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (subscribe_body(kinds=[]), "500 ErrorSchemaValidation"),
        (subscribe_body(kinds=["OpenedEvent"]), "500 ErrorSchemaValidation"),
        (subscribe_body().replace(' SubscribeToAllFolders="true"', ""), "ErrorInvalidSubscriptionRequest"),
        (subscribe_body(folders='<t:FolderId Id="x"/>'), "ErrorInvalidIdMalformed"),
        (subscribe_body(folders='<t:DistinguishedFolderId Id="archive"/>'), "ErrorFolderNotFound"),
        ("<m:Subscribe><m:PullSubscriptionRequest/></m:Subscribe>", "ErrorInvalidSubscriptionRequest"),
        (stream_body(["a"], minutes=0), "500 ErrorSchemaValidation"),
        (stream_body(["a"], minutes=31), "500 ErrorSchemaValidation"),
        (stream_body([]), "500 ErrorSchemaValidation"),
        (stream_body(map(str, range(201))), "500 ErrorInvalidRequest"),
        ("<m:PlayOnPhone/>", "500 ErrorInvalidRequest"),
        (UNKNOWN, "ErrorSubscriptionNotFound"),
    ],
)
def test_invalid_subscribe_requests(body: str, expected: str) -> None:
    client = Client()
    assert code(client.post(body, impersonate=client.mailboxes[0].address)) == expected


def test_subscribe_to_folders_of_another_mailbox() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    by_name = f"<t:Mailbox><t:EmailAddress>{bob.address}</t:EmailAddress></t:Mailbox>"
    foreign = (
        f'<t:FolderId Id="{bob.distinguished("inbox").id}"/>',
        f'<t:DistinguishedFolderId Id="inbox">{by_name}</t:DistinguishedFolderId>',
    )
    for folder in foreign:
        reply = client.post(subscribe_body(folders=folder), impersonate=alice.address, anchor=bob.address)
        assert code(reply) == "ErrorSubscriptionDelegateAccessNotSupported"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("Exchange2010_SP1", "NoError"),
        ("Exchange2016", "NoError"),
        ("Exchange2007_SP1", "500 ErrorInvalidRequest"),
        ("Exchange3000", "500 ErrorInvalidServerVersion"),
    ],
)
def test_streaming_requires_a_version(version: str, expected: str) -> None:
    client = Client()
    reply = client.post(subscribe_body(), impersonate=client.mailboxes[0].address, version=version)
    assert code(reply) == expected


def test_malformed_requests() -> None:
    client = Client()
    request = HttpRequest("POST", "/EWS/Exchange.asmx", {}, b"<a>", client.settings.user)
    assert code(client.exchange.handle(request, client.now)) == "500 ErrorSchemaValidation"
    get = HttpRequest("GET", "/EWS/Exchange.asmx", {}, b"", client.settings.user)
    assert client.exchange.handle(get, client.now).status == 405
    elsewhere = HttpRequest("GET", "/owa", {}, b"", client.settings.user)
    assert client.exchange.handle(elsewhere, client.now).status == 404


def test_subscription_limit_per_mailbox() -> None:
    client = Client(Settings(rate=0, limits=Limits(subscriptions=2)))
    alice, bob = client.mailboxes[:2]
    first = client.subscribe(alice)
    client.subscribe(alice)
    assert code(client.post(subscribe_body(), impersonate=alice.address)) == "ErrorExceededSubscriptionCount"
    client.subscribe(bob)
    body = f"<m:Unsubscribe><m:SubscriptionId>{first}</m:SubscriptionId></m:Unsubscribe>"
    client.post(body, impersonate=alice.address)
    client.subscribe(alice)


def test_stream_limit_per_impersonated_mailbox() -> None:
    client = Client(Settings(rate=0, limits=Limits(hanging_connections=1)))
    alice, bob = client.mailboxes[:2]
    ids = [client.subscribe(alice), client.subscribe(alice), client.subscribe(bob)]
    reader = client.stream(alice, ids[:1])
    refused = client.post(stream_body(ids[1:2]), impersonate=alice.address)
    assert code(refused) == "500 ErrorExceededConnectionCount"
    client.stream(bob, ids[2:])
    reader.hang_up()
    client.stream(alice, ids[1:2])


def test_request_limit() -> None:
    client = Client(Settings(rate=0, limits=Limits(concurrency=2)))
    alice = client.mailboxes[0]
    replies = [client.post(UNKNOWN, impersonate=alice.address) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 500]
    assert code(replies[2]) == "500 ErrorExceededConnectionCount"
    replies[0].finish()
    assert client.post(UNKNOWN, impersonate=alice.address).status == 200


def test_proxied_requests_are_slow_and_sometimes_fail() -> None:
    client = Client(Settings(rate=0, network=Network(proxied_500=0.2, proxied_503=0.2)))
    (alice,), (bob,) = client.on(0), client.on(1)
    get = (
        "<m:GetFolder><m:FolderShape><t:BaseShape>IdOnly</t:BaseShape></m:FolderShape><m:FolderIds>"
        '<t:DistinguishedFolderId Id="inbox"/></m:FolderIds></m:GetFolder>'
    )

    def statuses(anchor: str) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for _ in range(200):
            reply = client.post(get, impersonate=alice.address, anchor=anchor)
            found.setdefault(reply.status, []).append(reply.delay)
            reply.finish()
        return found

    right = statuses(alice.address)
    assert set(right) == {200}
    assert set(right[200]) == {0.002}
    wrong = statuses(bob.address)
    assert set(wrong) == {200, 500, 503}
    assert min(min(delays) for delays in wrong.values()) >= 0.05
    assert 20 < len(wrong[503]) < 60


def test_requests_are_counted() -> None:
    client = Client()
    client.subscribe(client.mailboxes[0])
    client.post("<m:PlayOnPhone/>")
    assert client.exchange.requests == {("Subscribe", 200): 1, ("PlayOnPhone", 500): 1}


@xsd_available
def test_replies_are_valid() -> None:
    client = Client()
    alice = client.mailboxes[0]
    good = client.post(subscribe_body(), impersonate=alice.address)
    for reply in (good, client.post(UNKNOWN, impersonate=alice.address), client.post(subscribe_body())):
        body = root(reply).find("s:Body/*", NAMES)
        assert body is not None
        validate(body)
    id_ = message(good).findtext("m:SubscriptionId", namespaces=NAMES)
    reply = client.post(
        f"<m:Unsubscribe><m:SubscriptionId>{id_}</m:SubscriptionId></m:Unsubscribe>",
        impersonate=alice.address,
    )
    validate(root(reply).find("s:Body/*", NAMES))  # type: ignore[arg-type]
