"""Where Autodiscover is found by an unprotected redirect or by DNS, and where it had better not be."""

import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rrset
import httpx
import pytest
import trio
import trio.testing

from listener.ews.codes import Failure
from listener.exchange.network import Network
from listener.exchange.redirect_allow_list import RedirectAllowList
from listener.exchange.redirect_discovery import RedirectDiscovery, Service, srv_records
from listener.groups.affinity import Placement
from tests.exchange.access import network
from tests.exchange.internet import Internet, Page, connected
from tests.exchange.test_discovery import EWS, FALLBACK, asking, no_records, soap, soap_url

ASKED = "http://autodiscover.example.org/autodiscover/autodiscover.xml"
ELSEWHERE = "autodiscover-s.outlook.com"


def redirect(target: str, status: int = 302) -> Page:
    return Page(status, headers=[("Location", target)])


def records(*services: Service) -> Any:
    async def resolve(name: str) -> Sequence[Service]:
        assert name == "_autodiscover._tcp.example.org"
        return services

    return resolve


async def found(internet: Internet, **more: Any) -> Placement | Failure:
    async with connected(internet) as access:
        return (await asking(access, **more).discover(["ann@example.org"]))["ann@example.org"]


HERE = Placement(EWS, "DAG1", "ann@example.org")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_of_plain_http_to_a_host_of_the_domain_is_followed(status: int) -> None:
    target = "https://mail.example.org/autodiscover/autodiscover.xml"
    internet = Internet({ASKED: redirect(target, status), soap_url("mail.example.org"): soap()})
    assert await found(internet) == HERE
    assert internet.urls == [ASKED, soap_url("mail.example.org")]
    assert "authorization" not in internet.asked[0].headers
    assert "x-anchormailbox" not in internet.asked[0].headers
    assert "authorization" in internet.asked[1].headers


async def test_the_endpoint_behind_a_hint_is_asked_first_the_next_time() -> None:
    internet = Internet({ASKED: redirect(soap_url("mail.example.org")), soap_url("mail.example.org"): soap()})
    async with connected(internet) as access:
        autodiscover = asking(access)
        await autodiscover.discover(["ann@example.org"])
        await autodiscover.discover(["bob@example.org"])
    assert internet.urls == [ASKED, soap_url("mail.example.org"), soap_url("mail.example.org")]


async def test_no_hint_is_asked_for_where_an_endpoint_answers() -> None:
    internet = Internet(
        {soap_url("autodiscover.example.org"): soap(), ASKED: redirect(soap_url("evil.example"))}
    )

    async def resolve(_name: str) -> Sequence[Service]:
        raise AssertionError("nobody asked for this")

    assert await found(internet, resolve=resolve) == HERE
    assert internet.urls == [soap_url("autodiscover.example.org")]


@pytest.mark.parametrize("host", ["evil.example", "example.org.evil.example", "notexample.org"])
async def test_a_hint_to_a_strange_host_is_not_followed_and_is_named(host: str) -> None:
    internet = Internet({ASKED: redirect(soap_url(host)), soap_url(host): soap()})
    failure = await found(internet)
    assert isinstance(failure, Failure)
    assert failure.code == "UntrustedRedirect"
    assert host in failure.text
    assert "[exchange] autodiscover_hosts" in failure.text
    assert host not in internet.connects
    by_dns = await found(Internet({soap_url(host): soap()}), resolve=records(Service(0, 0, host, 443)))
    assert isinstance(by_dns, Failure)
    assert by_dns.code == "UntrustedRedirect"


async def test_a_strange_host_is_followed_to_where_that_is_allowed() -> None:
    internet = Internet({ASKED: redirect(soap_url(ELSEWHERE)), soap_url(ELSEWHERE): soap()})
    assert await found(internet, hosts=("*.outlook.com",)) == HERE


async def test_a_strange_host_does_not_stand_in_the_way_of_what_is_configured() -> None:
    internet = Internet({ASKED: redirect(soap_url("evil.example"))})
    assert await found(internet, ews_url=FALLBACK) == Placement(FALLBACK, "", "ann@example.org")


@pytest.mark.parametrize(
    "page",
    [
        Page(200, b"<html>Welcome</html>"),
        Page(404),
        Page(302),
        redirect("http://mail.example.org/autodiscover/autodiscover.xml"),
    ],
    ids=["200", "404", "302 without a target", "to plain http"],
)
async def test_what_is_no_redirect_to_https_leads_on_to_the_srv_record(page: Page) -> None:
    internet = Internet({ASKED: page, soap_url("mail.example.org"): soap()})
    assert await found(internet, resolve=records(Service(0, 0, "mail.example.org.", 443))) == HERE
    assert internet.urls == [ASKED, soap_url("mail.example.org")]


async def test_a_redirect_to_plain_http_is_told_if_nothing_else_is_there() -> None:
    failure = await found(Internet({ASKED: redirect("http://mail.example.org/")}))
    assert isinstance(failure, Failure)
    assert failure.code == "InsecureRedirect"


async def test_of_srv_records_the_first_in_order_counts_with_its_port() -> None:
    internet = Internet({soap_url("b.example.org:8443"): soap()})
    order = [
        Service(10, 90, "a.example.org", 443),
        Service(5, 1, "c.example.org", 443),
        Service(5, 9, "b.example.org", 8443),
    ]
    await found(internet, resolve=records(*order))
    assert internet.connects == ["example.org", "autodiscover.example.org", "b.example.org"]


async def test_a_lone_dot_means_that_there_is_no_such_service() -> None:
    failure = await found(Internet(), resolve=records(Service(0, 0, ".", 443)))
    assert isinstance(failure, Failure)
    assert failure.code == "ConnectFailed"


async def test_a_configured_endpoint_is_the_only_one_that_is_asked() -> None:
    internet = Internet({ASKED: redirect(soap_url("mail.example.org")), soap_url("mail.example.org"): soap()})
    failure = await found(internet, url=soap_url("nobody.example.org"), resolve=no_records)
    assert isinstance(failure, Failure)
    assert internet.urls == []


# --- DNS, with a server of its own


@pytest.fixture
async def name_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """A DNS server for the resolver of this test; what it was asked for."""
    asked: list[str] = []

    async def serve() -> None:
        while True:
            packet, client = await sock.recvfrom(4096)
            query = dns.message.from_wire(packet)
            asked.append(str(query.question[0].name))
            answer = dns.message.make_response(query)
            if asked[-1] == "_autodiscover._tcp.example.org.":
                services = ("0 5 443 mail.example.org.", "1 0 8443 b.example.org.")
                answer.answer.append(dns.rrset.from_text(asked[-1], 60, "IN", "SRV", *services))
            else:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            await sock.sendto(answer.to_wire(), client)

    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], sock.getsockname()[1]
        monkeypatch.setattr(dns.asyncresolver, "default_resolver", resolver)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield asked
            nursery.cancel_scope.cancel()


async def test_srv_records_are_read_from_dns(name_server: list[str]) -> None:
    assert sorted(await srv_records("_autodiscover._tcp.example.org")) == [
        Service(0, 5, "mail.example.org", 443),
        Service(1, 0, "b.example.org", 8443),
    ]
    assert name_server == ["_autodiscover._tcp.example.org."]


async def test_a_name_that_is_not_there_has_no_records(name_server: list[str]) -> None:
    assert not await srv_records("_autodiscover._tcp.example.net")


@pytest.mark.parametrize(
    "service",
    [
        Service(0, 0, "[bad", 443),
        Service(0, 0, "xn--.example.org", 443),
        Service(0, 0, "a..example.org", 443),
        Service(0, 0, "evil.example\\.example.org", 443),
        Service(0, 0, "user@mail.example.org", 443),
        Service(0, 0, "mail.example.org", 0),
        Service(0, 0, "mail.example.org", 99999),
        Service(0, 0, "mail.example.org/\x00", 443),
        Service(0, 0, "a" * 300, 443),
    ],
)
async def test_an_srv_record_that_nothing_can_be_made_of_is_a_failure(service: Service) -> None:
    failure = await found(Internet({}), resolve=records(service))
    assert isinstance(failure, Failure)
    assert failure.code in ("InvalidUrl", "ConnectFailed")


@pytest.mark.parametrize(
    "target", ["https://[bad", "https://xn--.example.org/", "//a:99999/", "\\\\evil", "https://\x01/"]
)
async def test_a_redirect_of_plain_http_that_nothing_can_be_made_of_is_a_failure(target: str) -> None:
    failure = await found(Internet({ASKED: redirect(target)}))
    assert isinstance(failure, Failure)
    assert failure.code in ("InvalidUrl", "ConnectFailed")


async def test_of_a_redirect_only_the_headers_are_read() -> None:
    """Whoever sits on the way can write what they like."""
    sent = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield bytes(65536)

    def server(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == ASKED
        return httpx.Response(302, headers={"Location": soap_url("mail.example.org")}, stream=Endless())

    redirect_discovery = RedirectDiscovery(network(server), "test/1", RedirectAllowList([]))
    assert await redirect_discovery.redirect("example.org") == soap_url("mail.example.org")
    assert sent == 0


async def test_a_redirect_that_does_not_come_is_none(autojump_clock: trio.testing.MockClock) -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await trio.sleep_forever()
            raise AssertionError

    way = Network(tls=ssl.create_default_context(), transport=Silent())
    assert await RedirectDiscovery(way, "test/1", RedirectAllowList([])).redirect("example.org") is None
    assert trio.current_time() <= 20
