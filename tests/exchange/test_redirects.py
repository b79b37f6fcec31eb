"""Redirect discovery and the redirect allow-list."""

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
from hypothesis import given
from hypothesis import strategies as st

from listener.ews.codes import ExchangeError, Failure
from listener.exchange.network import Network
from listener.exchange.redirects import RedirectAllowList, RedirectDiscovery, SrvRecord, srv_records
from listener.placement import Placement
from tests.exchange.internet import Internet, Page, connected, network
from tests.exchange.test_discovery import EWS, FALLBACK, autodiscover_for, no_records, soap, soap_url

ASKED = "http://autodiscover.example.org/autodiscover/autodiscover.xml"
ELSEWHERE = "autodiscover-s.outlook.com"


def redirect(target: str, status: int = 302) -> Page:
    return Page(status, headers=[("Location", target)])


def records(*services: SrvRecord) -> Any:
    async def resolve(name: str) -> Sequence[SrvRecord]:
        assert name == "_autodiscover._tcp.example.org"
        return services

    return resolve


async def found(internet: Internet, **more: Any) -> Placement | Failure:
    async with connected(internet) as access:
        return (await autodiscover_for(access, **more).discover(["ann@example.org"]))["ann@example.org"]


HERE = Placement(EWS, "DAG1", "ann@example.org")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_an_http_redirect_to_a_host_of_the_domain_is_followed(status: int) -> None:
    target = "https://mail.example.org/autodiscover/autodiscover.xml"
    internet = Internet({ASKED: redirect(target, status), soap_url("mail.example.org"): soap()})
    assert await found(internet) == HERE
    assert internet.urls == [ASKED, soap_url("mail.example.org")]
    assert "authorization" not in internet.asked[0].headers
    assert "x-anchormailbox" not in internet.asked[0].headers
    assert "authorization" in internet.asked[1].headers


async def test_the_endpoint_of_redirect_discovery_is_asked_first_the_next_time() -> None:
    internet = Internet({ASKED: redirect(soap_url("mail.example.org")), soap_url("mail.example.org"): soap()})
    async with connected(internet) as access:
        autodiscover = autodiscover_for(access)
        await autodiscover.discover(["ann@example.org"])
        await autodiscover.discover(["bob@example.org"])
    assert internet.urls == [ASKED, soap_url("mail.example.org"), soap_url("mail.example.org")]


async def test_redirect_discovery_is_not_used_if_an_endpoint_answers() -> None:
    internet = Internet(
        {soap_url("autodiscover.example.org"): soap(), ASKED: redirect(soap_url("evil.example"))}
    )

    async def resolve(_name: str) -> Sequence[SrvRecord]:
        raise AssertionError("DNS must not be queried")

    assert await found(internet, resolve=resolve) == HERE
    assert internet.urls == [soap_url("autodiscover.example.org")]


@pytest.mark.parametrize("host", ["evil.example", "example.org.evil.example", "notexample.org"])
async def test_a_redirect_to_an_untrusted_host_is_not_followed(host: str) -> None:
    internet = Internet({ASKED: redirect(soap_url(host)), soap_url(host): soap()})
    failure = await found(internet)
    assert isinstance(failure, Failure)
    assert failure.code == "UntrustedRedirect"
    assert host in failure.text
    assert "[exchange] autodiscover_hosts" in failure.text
    assert host not in internet.connects
    by_dns = await found(Internet({soap_url(host): soap()}), resolve=records(SrvRecord(0, 0, host, 443)))
    assert isinstance(by_dns, Failure)
    assert by_dns.code == "UntrustedRedirect"


async def test_a_redirect_to_an_allowed_host_is_followed() -> None:
    internet = Internet({ASKED: redirect(soap_url(ELSEWHERE)), soap_url(ELSEWHERE): soap()})
    assert await found(internet, hosts=("*.outlook.com",)) == HERE


async def test_after_an_untrusted_host_the_configured_url_is_used() -> None:
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
async def test_without_an_https_redirect_the_srv_record_is_used(page: Page) -> None:
    internet = Internet({ASKED: page, soap_url("mail.example.org"): soap()})
    assert await found(internet, resolve=records(SrvRecord(0, 0, "mail.example.org.", 443))) == HERE
    assert internet.urls == [ASKED, soap_url("mail.example.org")]


async def test_a_redirect_to_http_is_reported_if_there_is_no_other_endpoint() -> None:
    failure = await found(Internet({ASKED: redirect("http://mail.example.org/")}))
    assert isinstance(failure, Failure)
    assert failure.code == "InsecureRedirect"


async def test_the_first_srv_record_is_used_with_its_port() -> None:
    internet = Internet({soap_url("b.example.org:8443"): soap()})
    order = [
        SrvRecord(10, 90, "a.example.org", 443),
        SrvRecord(5, 1, "c.example.org", 443),
        SrvRecord(5, 9, "b.example.org", 8443),
    ]
    await found(internet, resolve=records(*order))
    assert internet.connects == ["example.org", "autodiscover.example.org", "b.example.org"]


async def test_a_single_dot_means_that_there_is_no_service() -> None:
    failure = await found(Internet(), resolve=records(SrvRecord(0, 0, ".", 443)))
    assert isinstance(failure, Failure)
    assert failure.code == "ConnectFailed"


async def test_only_a_configured_endpoint_is_asked() -> None:
    internet = Internet({ASKED: redirect(soap_url("mail.example.org")), soap_url("mail.example.org"): soap()})
    failure = await found(internet, url=soap_url("missing.example.org"), resolve=no_records)
    assert isinstance(failure, Failure)
    assert internet.urls == []


# --- DNS


@pytest.fixture
async def name_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """A DNS server for this test's resolver. Yields the names that it was asked for."""
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
        SrvRecord(0, 5, "mail.example.org", 443),
        SrvRecord(1, 0, "b.example.org", 8443),
    ]
    assert name_server == ["_autodiscover._tcp.example.org."]


async def test_an_unknown_name_has_no_records(name_server: list[str]) -> None:
    assert not await srv_records("_autodiscover._tcp.example.net")


@pytest.mark.parametrize(
    "service",
    [
        SrvRecord(0, 0, "[bad", 443),
        SrvRecord(0, 0, "xn--.example.org", 443),
        SrvRecord(0, 0, "a..example.org", 443),
        SrvRecord(0, 0, "evil.example\\.example.org", 443),
        SrvRecord(0, 0, "user@mail.example.org", 443),
        SrvRecord(0, 0, "mail.example.org", 0),
        SrvRecord(0, 0, "mail.example.org", 99999),
        SrvRecord(0, 0, "mail.example.org/\x00", 443),
        SrvRecord(0, 0, "a" * 300, 443),
    ],
)
async def test_an_invalid_srv_record_is_a_failure(service: SrvRecord) -> None:
    failure = await found(Internet({}), resolve=records(service))
    assert isinstance(failure, Failure)
    assert failure.code in ("InvalidUrl", "ConnectFailed")


@pytest.mark.parametrize(
    "target", ["https://[bad", "https://xn--.example.org/", "//a:99999/", "\\\\evil", "https://\x01/"]
)
async def test_an_http_redirect_to_an_invalid_url_is_a_failure(target: str) -> None:
    failure = await found(Internet({ASKED: redirect(target)}))
    assert isinstance(failure, Failure)
    assert failure.code in ("InvalidUrl", "ConnectFailed")


async def test_only_the_headers_of_an_http_redirect_are_read() -> None:
    """An attacker on the network path controls the body."""
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
    assert await redirect_discovery.http_redirect("example.org") == soap_url("mail.example.org")
    assert sent == 0


async def test_a_missing_response_is_no_redirect(autojump_clock: trio.testing.MockClock) -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await trio.sleep_forever()
            raise AssertionError

    silent_network = Network(tls=ssl.create_default_context(), transport=Silent())
    assert (
        await RedirectDiscovery(silent_network, "test/1", RedirectAllowList([])).http_redirect("example.org")
        is None
    )
    assert trio.current_time() <= 20


CONFIGURED = [
    "https://ex01.corp.example/EWS/Exchange.asmx",
    "https://localhost:8443/EWS",
    "http://127.0.0.1:8080/EWS",
]
ALLOW_LIST = RedirectAllowList(["mail.partner.example", "*.tenant.example", "odd.example:444"], CONFIGURED)


def code_of(
    url: str, domain: str = "contoso.example", allow_list: RedirectAllowList = ALLOW_LIST
) -> str | None:
    try:
        allow_list.checked_url(url, domain, "Autodiscover")
    except ExchangeError as error:
        return error.failure.code
    return None


@pytest.mark.parametrize(
    "url",
    [
        "https://contoso.example/EWS/Exchange.asmx",
        "https://mail.contoso.example/EWS/Exchange.asmx",
        "HTTPS://MAIL.Contoso.Example./EWS/Exchange.asmx",
        "https://mail.contoso.example:8443/EWS/Exchange.asmx",
        "https://ex01.corp.example/EWS/Exchange.asmx",
        "https://ex02.corp.example/EWS/Exchange.asmx",
        "https://localhost:8443/EWS",
        "https://localhost/EWS",
        "http://127.0.0.1:8080/EWS/Exchange.asmx",
        "https://mail.partner.example/EWS",
        "https://autodiscover.tenant.example/EWS",
        "https://odd.example:444/EWS",
        "https://outlook.office365.com/EWS/Exchange.asmx",
        "https://autodiscover-s.outlook.com/autodiscover/autodiscover.svc",
    ],
)
def test_credentials_may_be_sent_to_allowed_hosts(url: str) -> None:
    assert code_of(url) is None


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://evilcontoso.example/EWS", "UntrustedRedirect"),
        ("https://contoso.example.evil.example/EWS", "UntrustedRedirect"),
        ("https://mail-contoso.example/EWS", "UntrustedRedirect"),
        ("https://c\u043entoso.example/EWS", "UntrustedRedirect"),  # a Cyrillic letter
        ("https://10.0.0.1/EWS", "UntrustedRedirect"),
        ("https://[2001:db8::1]/EWS", "UntrustedRedirect"),
        ("https://2130706433/EWS", "UntrustedRedirect"),
        ("https://127.0.0.1/EWS", None),
        ("https://127.0.0.1:9999/EWS", "UntrustedRedirect"),
        ("https://127.0.0.2:8080/EWS", "UntrustedRedirect"),
        ("https://localhost:9999/EWS", "UntrustedRedirect"),
        ("https://ex01.corp.example:9999/EWS", "UntrustedRedirect"),
        ("https://sub.mail.partner.example/EWS", "UntrustedRedirect"),
        ("https://odd.example/EWS", "UntrustedRedirect"),
        ("https://outlook.office365.com.evil.example/EWS", "UntrustedRedirect"),
        ("https://evil-outlook.office365.com/EWS", "UntrustedRedirect"),
        ("https://mail.contoso.example@evil.example/EWS", "InvalidUrl"),
        ("https://evil.example\\@mail.contoso.example/EWS", "InvalidUrl"),
        ("https://[bad", "InvalidUrl"),
        ("https://xn--.contoso.example/", "InvalidUrl"),
        ("http://mail.contoso.example/EWS", "InsecureRedirect"),
        ("http://ex01.corp.example/EWS", "InsecureRedirect"),
        ("http://127.0.0.1:8081/EWS", "InsecureRedirect"),
        ("ftp://mail.contoso.example/EWS", "InvalidUrl"),
        ("/EWS/Exchange.asmx", "InvalidUrl"),
        ("", "InvalidUrl"),
    ],
)
def test_credentials_may_not_be_sent_to_other_hosts(url: str, code: str | None) -> None:
    assert code_of(url) == code


@pytest.mark.parametrize(
    ("configured", "url"),
    [
        ("https://mail.contoso.co.uk/EWS", "https://evil.co.uk/EWS"),
        ("https://contoso.co.uk/EWS", "https://evil.co.uk/EWS"),
        ("https://contoso.com.au/EWS", "https://evil.com.au/EWS"),
        ("https://contoso.azurewebsites.net/EWS", "https://evil.azurewebsites.net/EWS"),
        ("https://c.westeurope.cloudapp.azure.com/EWS", "https://e.westeurope.cloudapp.azure.com/EWS"),
        ("https://mail.example/EWS", "https://evil.example/EWS"),
        ("https://10.0.0.1/EWS", "https://11.0.0.1/EWS"),
    ],
)
def test_neighbors_of_a_configured_host_in_a_shared_domain_are_untrusted(configured: str, url: str) -> None:
    assert code_of(url, allow_list=RedirectAllowList([], [configured])) == "UntrustedRedirect"


@pytest.mark.parametrize("domain", ["com", "", ".", "xn--", "127.0.0.1"])
def test_an_invalid_mail_domain_allows_no_other_host(domain: str) -> None:
    assert code_of("https://evil.com/EWS", domain) == "UntrustedRedirect"
    assert code_of("https://evil.127.0.0.1/EWS", domain) == "UntrustedRedirect"


def test_the_failure_names_the_source_the_host_and_the_setting() -> None:
    with pytest.raises(ExchangeError) as caught:
        ALLOW_LIST.checked_url("https://evil.example/EWS", "contoso.example", "Autodiscover")
    text = caught.value.failure.text
    assert text == (
        "Autodiscover names the host evil.example, which is not trusted: if it is correct, add it to [exchange] "
        "autodiscover_hosts"
    )


def test_a_redirect_is_never_followed_to_http() -> None:
    with pytest.raises(ExchangeError) as caught:
        ALLOW_LIST.checked_redirect("http://127.0.0.1:8080/EWS", "contoso.example", "a server")
    assert caught.value.failure.code == "InsecureRedirect"


@given(st.text(), st.text())
def test_any_url_is_allowed_or_a_failure(url: str, domain: str) -> None:
    code_of(url, domain)
    code_of(f"https://{url}", domain)
