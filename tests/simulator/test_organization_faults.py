"""Faults of back ends, mailboxes and the organization."""

from collections import Counter
from typing import Any

import pytest
from lxml import etree

from listener.simulator.directory import grouping
from listener.simulator.fault_effects import NoTarget
from listener.simulator.faults import FaultError, HangUp
from listener.simulator.http import HttpRequest, Reply
from listener.simulator.settings import Network, Rules, Settings
from tests.simulator.client import Client, Reader, code, stream_body, subscribe_body
from tests.simulator.test_autodiscover import soap

DIRECT = Network(proxied_500=0, proxied_503=0)


def open_stream(client: Client, backend: int) -> tuple[str, str, Reader]:
    """Return address and id of a subscription on that back end, and the stream that reads it."""
    (mailbox,) = client.on(backend)
    id_ = client.subscribe(mailbox)
    reader = client.stream(mailbox, [id_])
    assert reader.read() == ["OK"]
    return mailbox.address, id_, reader


def ask(client: Client, address: str, body: str = "") -> str:
    return code(client.post(body or subscribe_body(), impersonate=address))


def test_backend_restart() -> None:
    client = Client()
    alice, first, reader = open_stream(client, 0)
    bob, other, elsewhere = open_stream(client, 1)
    (line,) = client.make_fault("backend_restart", backend="EX01")
    assert (line.backend, line.mailbox) == ("ex01.contoso.example", "")
    assert reader.stream.fault == HangUp(reset=True)
    assert elsewhere.stream.fault is None
    reader.hang_up()
    assert client.stream(client.on(0)[0], [first]).read()[0] == "ErrorSubscriptionNotFound 1"
    assert [each.id for each in client.exchange.subscriptions] == [other]
    # Ids restart at 1, so the first id names a subscription again.
    assert client.subscribe(client.on(0)[0]) == first
    assert bob != alice


def test_backend_restart_with_downtime() -> None:
    client = Client()
    address = client.on(0)[0].address
    client.make_fault("backend_restart", backend="EX01", seconds=2)
    assert client.post(subscribe_body(), impersonate=address).status == 503
    assert client.post(subscribe_body(), impersonate=client.on(1)[0].address).status == 200
    client.advance_time(2)
    assert ask(client, address) == "NoError"


def test_failover() -> None:
    client = Client(Settings(rate=0, network=DIRECT))
    directory = client.exchange.directory
    moved = client.on(0, count=20)
    _, old, reader = open_stream(client, 0)
    client.make_fault("failover", backend="ex01.contoso.example", seconds=5)
    assert reader.stream.fault == HangUp(reset=True)
    assert {directory.home(mailbox) for mailbox in moved} <= set(directory.backends[1:])
    assert client.on(0) == []
    # The cookie names a failed back end. So the anchor's back end answers, where the subscription is unknown.
    address = moved[0].address
    reply = client.post(subscribe_body(), impersonate=address, affinity=True, cookie=0)
    assert code(reply) == "NoError"
    assert dict(reply.headers)["X-CalculatedBETarget"] == directory.home(moved[0])
    lines = client.stream(moved[0], [old], affinity=True, cookie=0).read()
    assert lines[0] == "ErrorSubscriptionNotFound 1"
    client.advance_time(5)
    reply = client.post(subscribe_body(), impersonate=address, affinity=True, cookie=0)
    assert dict(reply.headers)["X-CalculatedBETarget"] == directory.backends[0]
    assert client.on(0) == [], "mailboxes stay where they went"


def test_failover_of_the_last_back_end_is_refused() -> None:
    client = Client(Settings(rate=0, backends=2))
    client.make_fault("failover", backend="EX01")
    with pytest.raises(NoTarget):
        client.make_fault("failover")
    with pytest.raises(NoTarget):
        client.make_fault("backend_restart", backend="EX01")
    assert client.ledger.faults == 1
    assert client.make_fault("backend_restart")[0].backend == "ex02.contoso.example"


def discovered(client: Client, *users: str) -> etree._Element:
    body = soap(list(users), ["GroupingInformation"])
    reply = client.exchange.handle(
        HttpRequest("POST", "/autodiscover/autodiscover.svc", {}, body, client.settings.user), client.now
    )
    assert isinstance(reply.body, bytes)
    assert reply.status == 200
    return etree.fromstring(reply.body)


def test_mailbox_move() -> None:
    client = Client()
    address, id_, reader = open_stream(client, 0)
    (line,) = client.make_fault("mailbox_move", mailbox=address, backend="EX02", seconds=3)
    assert (line.mailbox, line.backend) == (address, "ex02.contoso.example")
    assert reader.read() == ["ErrorReadEventsFailed 1"]
    assert [each.id for each in client.exchange.subscriptions] == []
    found = discovered(client, address).find(".//{*}UserSetting[{*}Name='GroupingInformation']/{*}Value")
    assert found is not None
    assert found.text == grouping("ex02.contoso.example")
    assert ask(client, address) == "ErrorMailboxMoveInProgress"
    client.advance_time(3)
    assert ask(client, address) == "NoError"
    assert id_


def test_mailbox_move_without_a_target_is_refused() -> None:
    client = Client(Settings(rate=0, backends=1))
    with pytest.raises(NoTarget):
        client.make_fault("mailbox_move")


def test_overflow() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    ids = [client.subscribe(each) for each in (alice, bob)]
    client.exchange.publish(alice.deliver("x", "y@fabrikam.example", client.now))
    client.exchange.publish(bob.deliver("x", "y@fabrikam.example", client.now))
    (line,) = client.make_fault("overflow", mailbox=alice.address)
    client.make_fault("overflow", mailbox=bob.address, quiet=True)
    assert line.subscription == ids[0]
    assert client.stream(alice, ids[:1]).read()[0] == "ErrorMissedNotificationEvents 1"
    assert client.stream(bob, ids[1:]).read() == ["OK"]


def test_overflow_during_a_stream() -> None:
    client = Client()
    address, _, reader = open_stream(client, 0)
    client.make_fault("overflow")
    assert reader.read() == ["ErrorMissedNotificationEvents 1"]
    with pytest.raises(NoTarget):
        client.make_fault("overflow", mailbox=address)


def test_silent_subscription() -> None:
    client = Client(Settings(rate=0, heartbeat=45))
    alice, bob = client.mailboxes[:2]
    where: dict[str, Any] = {"anchor": alice.address, "affinity": True}
    ids = [client.subscribe(each, **where) for each in (alice, bob)]
    reader = client.stream(alice, ids, affinity=True)
    reader.read()
    client.make_fault("silent_subscription", mailbox=alice.address, seconds=60)

    def arrive() -> list[str]:
        for each in (alice, bob):
            client.exchange.publish(each.deliver("x", "y@fabrikam.example", client.now))
        return reader.read()

    assert Counter(arrive())["NewMailEvent"] == 1
    client.advance_time(50)
    assert Counter(arrive()) == Counter(OK=1, CreatedEvent=1, NewMailEvent=1, ModifiedEvent=1)
    client.make_fault("silent_subscription", mailbox=alice.address, seconds=20)
    client.advance_time(10)
    assert Counter(arrive())["NewMailEvent"] == 1, "the later of the two ends counts"
    client.advance_time(10)
    assert Counter(arrive())["NewMailEvent"] == 2


@pytest.mark.parametrize("refused", ["ErrorNonExistentMailbox", "ErrorAccountDisabled"])
def test_mailbox_disabled(refused: str) -> None:
    client = Client()
    address, _, reader = open_stream(client, 0)
    client.make_fault("mailbox_disabled", mailbox=address, code=refused, seconds=5)
    assert reader.read() == [f"{refused} 1"]
    assert ask(client, address) == f"500 {refused}"
    assert ask(client, address, stream_body(["x"])) == f"500 {refused}"
    assert ask(client, client.on(1)[0].address) == "NoError"
    client.advance_time(5)
    assert ask(client, address) == "NoError"


@pytest.mark.parametrize("impersonated", ["one", "all"])
def test_impersonation_withdrawn(impersonated: str) -> None:
    client = Client()
    address, _, reader = open_stream(client, 0)
    other = client.on(1)[0].address
    client.make_fault("impersonation_withdrawn", mailbox=address if impersonated == "one" else "*", seconds=5)
    assert reader.read() == []
    assert ask(client, address) == "500 ErrorImpersonateUserDenied"
    assert ask(client, other) == ("NoError" if impersonated == "one" else "500 ErrorImpersonateUserDenied")
    client.advance_time(5)
    assert ask(client, address) == "NoError"


def test_throttled() -> None:
    client = Client()
    _, id_, _ = open_stream(client, 0)
    client.make_fault("throttled", concurrency=2, connections=1, back_off_ms=700, seconds=5)
    under_way: list[Reply] = [
        client.post(subscribe_body(), impersonate=each.address) for each in client.mailboxes[:3]
    ]
    assert [code(reply) for reply in under_way] == ["NoError", "NoError", "500 ErrorServerBusy"]
    assert isinstance(under_way[2].body, bytes)
    assert b'Name="BackOffMilliseconds">700<' in under_way[2].body
    under_way[0].finish()
    assert ask(client, client.mailboxes[3].address) == "NoError"
    second = client.post(stream_body([id_]), impersonate=client.mailboxes[1].address)
    assert code(second) == "500 ErrorServerBusy"
    client.advance_time(5)
    assert ask(client, client.mailboxes[4].address) == "NoError"


@pytest.mark.parametrize("how", ["refuse", "reset", "503"])
def test_outage(how: str) -> None:
    client = Client()
    address, _, reader = open_stream(client, 0)
    client.make_fault("outage", how=how, seconds=5)
    assert reader.stream.fault == HangUp(reset=True)
    reply = client.post(subscribe_body(), impersonate=address)
    assert reply.status == 503
    assert reply.fault == (None if how == "503" else HangUp(reset=True))
    client.advance_time(5)
    assert ask(client, address) == "NoError"
    assert client.exchange.requests["-", 503] == 1


def test_autodiscover_failure() -> None:
    client = Client()
    address = client.mailboxes[0].address
    client.make_fault("autodiscover_failure", code="ServerBusy", seconds=5)
    assert discovered(client, address).findtext(".//{*}Response/{*}ErrorCode") == "ServerBusy"
    client.make_fault("autodiscover_failure", code="InternalServerError", level="user", seconds=1)
    assert discovered(client, address).findtext(".//{*}Response/{*}ErrorCode") == "NoError"
    assert discovered(client, address).findtext(".//{*}UserResponse/{*}ErrorCode") == "InternalServerError"
    client.make_fault("autodiscover_failure", status=502, seconds=1)
    for path in ("/autodiscover/autodiscover.svc", "/autodiscover/autodiscover.xml"):
        request = HttpRequest("POST", path, {}, b"<x/>", client.settings.user)
        assert client.exchange.handle(request, client.now).status == 502
    client.advance_time(5)
    assert discovered(client, address).findtext(".//{*}UserResponse/{*}ErrorCode") == "NoError"


def test_bad_certificate_needs_tls() -> None:
    with pytest.raises(NoTarget):
        Client().make_fault("bad_certificate")
    client = Client(Settings(rate=0, tls=True))
    client.make_fault("bad_certificate", how="other_host", seconds=5)
    assert client.exchange.conditions.certificate is not None
    client.advance_time(5)
    assert client.exchange.conditions.certificate is None


def test_one_user_per_stream() -> None:
    client = Client(Settings(rate=0, rules=Rules(one_user_per_stream=True)))
    alice, bob = client.mailboxes[:2]
    where: dict[str, Any] = {"anchor": alice.address, "affinity": True}
    ids = [client.subscribe(each, **where) for each in (alice, bob)]
    lines = client.stream(alice, ids, affinity=True).read()
    assert lines[0] == "ErrorSubscriptionAccessDenied 1"
    assert client.stream(alice, ids[:1], affinity=True).read() == ["OK"]
    lines = client.stream(bob, ids[1:], **where).read()
    assert lines == ["OK"]


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("mailbox_move", {"mailbox": "unknown@contoso.example"}, 'unknown mailbox "unknown@contoso.example"'),
        ("failover", {"backend": "EX09"}, 'unknown back end "EX09"; known back ends: ex01, ex02, ex03'),
        ("closed", {"backend": "EX09"}, 'unknown back end "EX09"'),
    ],
)
def test_unknown_mailboxes_and_back_ends(kind: str, given: dict[str, str], expected: str) -> None:
    with pytest.raises(FaultError) as error:
        Client().make_fault(kind, **given)
    assert expected in str(error.value)


def test_organization_without_mailboxes() -> None:
    client = Client(Settings(rate=0, mailboxes=0))
    for kind in ("mailbox_move", "overflow", "mailbox_disabled"):
        with pytest.raises(NoTarget):
            client.make_fault(kind)


def test_tls_offloaded_needs_tls() -> None:
    with pytest.raises(NoTarget):
        Client().make_fault("tls_offloaded")
