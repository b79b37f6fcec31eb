"""Faults in the response to a request."""

from email.utils import parsedate_to_datetime

import pytest
from lxml import etree

from listener.simulator import faults
from listener.simulator.http import HttpRequest, Reply
from tests.simulator.client import NAMES, Client, code, message, root, stream_body, subscribe_body
from tests.simulator.codes import CODES
from tests.xsd import validate, xsd_available

BODIES = {
    "Subscribe": subscribe_body(),
    "Unsubscribe": "<m:Unsubscribe><m:SubscriptionId>QQ==</m:SubscriptionId></m:Unsubscribe>",
    "GetStreamingEvents": stream_body(["QQ==", "Qg=="]),
    "GetItem": '<m:GetItem><m:ItemShape><t:BaseShape>IdOnly</t:BaseShape></m:ItemShape><m:ItemIds><t:ItemId Id="x"/>'
    "</m:ItemIds></m:GetItem>",
}


def ask(client: Client, operation: str = "Subscribe", mailbox: int = 0) -> Reply:
    return client.post(BODIES[operation], impersonate=client.mailboxes[mailbox].address)


@pytest.mark.parametrize("operation", BODIES)
@pytest.mark.parametrize("wanted", CODES)
def test_response_code_in_a_response_message(operation: str, wanted: str) -> None:
    client = Client()
    client.make_fault("response_code", code=wanted, operation=operation)
    reply = ask(client, operation)
    assert reply.status == 200
    assert code(reply) == wanted
    assert message(reply).get("ResponseClass") == "Error"
    assert client.exchange.requests == {(operation, 200): 1}


@xsd_available
@pytest.mark.parametrize("operation", BODIES)
@pytest.mark.parametrize("ids", ["none", "one", "all"])
def test_response_messages_are_valid(operation: str, ids: str) -> None:
    client = Client()
    client.make_fault("response_code", code="ErrorServerBusy", back_off_ms=1500, ids=ids)
    reply = ask(client, operation)
    body = root(reply).find("s:Body/*", NAMES)
    assert body is not None
    validate(body)
    if operation == "GetStreamingEvents":
        listed = len(message(reply).findall("m:ErrorSubscriptionIds/t:SubscriptionId", NAMES))
        assert listed == {"none": 0, "one": 1, "all": 2}[ids]


@pytest.mark.parametrize("wanted", [*CODES, "ErrorUndocumentedCode"])
@pytest.mark.parametrize("status", [200, 500])
def test_response_code_in_a_soap_fault(wanted: str, status: int) -> None:
    client = Client()
    client.make_fault("response_code", code=wanted, place="fault", status=status)
    assert code(ask(client)) == f"{status} {wanted}"


@pytest.mark.parametrize("wanted", CODES)
def test_response_code_in_faultcode_only(wanted: str) -> None:
    client = Client()
    client.make_fault("response_code", code=wanted, place="faultcode")
    reply = ask(client)
    assert reply.status == 500
    (fault,) = root(reply).findall("s:Body/s:Fault", NAMES)
    assert [child.tag for child in fault] == ["faultcode", "faultstring"]
    assert (fault.findtext("faultcode") or "").partition(":")[2] == wanted


@pytest.mark.parametrize("place", ["message", "fault"])
def test_back_off_milliseconds(place: str) -> None:
    client = Client()
    client.make_fault("response_code", code="ErrorServerBusy", place=place, back_off_ms=1500)
    (value,) = root(ask(client)).iterfind(".//t:Value[@Name='BackOffMilliseconds']", NAMES)
    assert value.text == "1500"


def http(**given: object) -> tuple[int, dict[str, str], bytes]:
    client = Client()
    client.make_fault("http", **given)
    reply = ask(client)
    assert isinstance(reply.body, bytes)
    return reply.status, dict(reply.headers), reply.body


@pytest.mark.parametrize("status", [302, 401, 403, 429, 500, 502, 503, 504])
def test_http_status_has_an_html_page(status: int) -> None:
    actual_status, headers, body = http(status=status)
    assert actual_status == status
    assert headers["Content-Type"].startswith("text/html")
    assert b"<HTML>" in body
    assert "Retry-After" not in headers


def test_http_status_headers() -> None:
    assert http(status=401)[1]["WWW-Authenticate"] == 'Basic realm="127.0.0.1"'
    assert http(status=403, policy_reason="EwsDisabled")[1]["X-EWS-Policy-Reason"] == "EwsDisabled"
    assert http(status=302)[1]["Location"] == "/owa/auth/errorFE.aspx?httpCode=500"
    assert http(status=451, location="https://x/")[1]["X-MS-Location"] == "https://x/"
    assert http(status=429, retry_after=2)[1]["Retry-After"] == "2"
    date = http(status=503, retry_after=2, retry_after_date=True)[1]["Retry-After"]
    assert parsedate_to_datetime(date).timestamp() == Client().now + 2


def test_login_page() -> None:
    client = Client()
    client.make_fault("login_page")
    reply = ask(client)
    assert reply.status == 200
    assert isinstance(reply.body, bytes)
    assert b"<form" in reply.body


@pytest.mark.parametrize("kind", ["no_answer", "hang_up", "stray_response"])
def test_faults_that_prevent_the_operation(kind: str) -> None:
    client = Client()
    client.make_fault(kind)
    reply = ask(client)
    assert reply.fault is not None
    assert reply.fault.kind == kind
    assert client.exchange.subscriptions.queued() == 0
    assert list(client.exchange.subscriptions) == []


@pytest.mark.parametrize(
    ("kind", "given"),
    [("gzip", {}), ("slow", {"operation": "Subscribe"}), ("cut", {"operation": "Subscribe"})],
)
def test_faults_after_the_operation(kind: str, given: dict[str, str]) -> None:
    client = Client()
    client.make_fault(kind, **given)
    reply = ask(client)
    assert reply.fault is not None
    assert (reply.fault.kind, code(reply)) == (kind, "NoError")
    assert len(list(client.exchange.subscriptions)) == 1


def test_stray_response_follows_a_fault() -> None:
    client = Client()
    client.make_fault("stray_response")
    assert code(ask(client)) == "500 ErrorInternalServerError"


# -- the request that a fault applies to ---------------------------------------------------------------------


def test_fault_matches_operation_and_mailbox() -> None:
    client = Client()
    bob = client.mailboxes[1].address
    client.make_fault("response_code", code="ErrorTimeoutExpired", operation="Subscribe", mailbox=bob.upper())
    assert code(ask(client, "Unsubscribe", 1)) == "ErrorSubscriptionNotFound"
    assert code(ask(client, "Subscribe", 0)) == "NoError"
    assert client.ledger.faults == 0
    assert code(ask(client, "Subscribe", 1)) == "ErrorTimeoutExpired"
    (line,) = client.exchange.fault_scheduler.recent
    assert (line.kind, line.fault, line.mailbox) == ("fault", "response_code", bob)
    assert line.parameters is not None
    assert line.parameters["operation"] == "Subscribe"
    assert code(ask(client, "Subscribe", 1)) == "NoError"


def test_fault_matches_mailboxes_of_a_stream() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    ids = [client.subscribe(alice), client.subscribe(bob)]
    client.make_fault("http", status=503, mailbox=bob.address)
    assert client.post(stream_body(ids[:1]), impersonate=alice.address).status == 200
    assert client.post(stream_body(ids), impersonate=alice.address).status == 503


def test_fault_applies_the_given_number_of_times() -> None:
    client = Client()
    client.make_fault("http", status=503, times=2)
    assert [ask(client).status for _ in range(3)] == [503, 503, 200]
    assert client.ledger.faults == 2


def test_fault_expires_without_a_matching_request() -> None:
    client = Client()
    assert client.make_fault("http", status=503, within=5) == []
    client.advance_time(5)
    assert ask(client).status == 200
    assert client.ledger.faults == 0
    assert client.exchange.fault_scheduler.state()["waiting"] == []


def discover(client: Client, address: str) -> Reply:
    body = f"<x>{address}</x>".encode()
    return client.exchange.handle(
        HttpRequest("POST", "/autodiscover/autodiscover.svc", {}, body, client.settings.user), client.now
    )


def test_autodiscover_must_be_named_as_operation() -> None:
    client = Client()
    client.make_fault("http", status=503)
    client.make_fault("http", status=502, operation="Autodiscover", mailbox=client.mailboxes[0].address)
    assert discover(client, "other@contoso.example").status == 400
    assert discover(client, client.mailboxes[0].address).status == 502
    assert ask(client).status == 503


def test_gzip_stream() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    client.make_fault("gzip", operation="GetStreamingEvents")
    reader = client.stream(alice, [id_])
    assert isinstance(reader.reply.fault, faults.Gzip)


def test_html_pages_are_not_well_formed_xml() -> None:
    _, _, body = http(status=503)
    with pytest.raises(etree.XMLSyntaxError):
        etree.fromstring(body)
