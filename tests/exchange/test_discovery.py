"""Autodiscover against scripted hosts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any
from xml.sax.saxutils import escape

import httpx
import pytest
import structlog.testing
import trio
import trio.testing
from lxml import etree

from listener.config.secrets import Secret
from listener.ews.codes import ExchangeError, Failure
from listener.exchange.auth import Accounts, Credentials
from listener.exchange.auth.ntlm import Ntlm
from listener.exchange.client import Access
from listener.exchange.discovery import Autodiscover
from listener.exchange.redirects import SrvRecord
from listener.placement import Placement
from tests.exchange.internet import Answer, Asked, Internet, Page, connected

A = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
POX_REQUEST = "http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"
POX_OUTER = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"
POX_INNER = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"
EWS = "https://mail.example.org/EWS/Exchange.asmx"
FALLBACK = "https://fallback.example.org/EWS/Exchange.asmx"


def soap_url(host: str) -> str:
    return f"https://{host}/autodiscover/autodiscover.svc"


def pox_url(host: str) -> str:
    return f"https://{host}/autodiscover/autodiscover.xml"


# --- responses of endpoints


def users_of(asked: Asked) -> list[str]:
    return [user.text or "" for user in etree.fromstring(asked.body).iter(f"{{{A}}}Mailbox")]


def response(users: str, code: str = "NoError") -> bytes:
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<GetUserSettingsResponseMessage xmlns="{A}"><Response><ErrorCode>{code}</ErrorCode><ErrorMessage/>'
        f"<UserResponses>{users}</UserResponses></Response></GetUserSettingsResponseMessage></s:Body></s:Envelope>"
    ).encode()


def user(code: str = "NoError", target: str = "", message: str = "", **settings: str) -> str:
    values = "".join(
        f"<UserSetting><Name>{name}</Name><Value>{escape(value)}</Value></UserSetting>"
        for name, value in settings.items()
    )
    return (
        f"<UserResponse><ErrorCode>{code}</ErrorCode><ErrorMessage>{message}</ErrorMessage>"
        f"<RedirectTarget>{escape(target)}</RedirectTarget><UserSettingErrors/>"
        f"<UserSettings>{values}</UserSettings></UserResponse>"
    )


def at_home(_mailbox: str) -> str:
    return user(ExternalEwsUrl=EWS, GroupingInformation="DAG1")


def soap(answer_for: Callable[[str], str] = at_home) -> Answer:
    """Return a SOAP endpoint that answers `answer_for(mailbox)` for each mailbox."""
    return lambda asked: Page(200, response("".join(map(answer_for, users_of(asked)))))


def pox(answer_for: Callable[[str], str]) -> Answer:
    def answer(asked: Asked) -> Page:
        mailbox = etree.fromstring(asked.body).findtext(f".//{{{POX_REQUEST}}}EMailAddress") or ""
        return Page(
            200,
            f'<Autodiscover xmlns="{POX_OUTER}"><Response xmlns="{POX_INNER}">{answer_for(mailbox)}</Response>'
            "</Autodiscover>".encode(),
        )

    return answer


def account(inside: str) -> str:
    return f"<Account><AccountType>email</AccountType>{inside}</Account>"


def pox_at_home(_mailbox: str) -> str:
    return account(
        f"<Action>settings</Action><Protocol><Type>EXPR</Type><EwsUrl>{EWS}</EwsUrl>"
        "<GroupingInformation>DAG1</GroupingInformation></Protocol>"
    )


async def no_records(_name: str) -> Sequence[SrvRecord]:
    return ()


def autodiscover_for(access: Access, **more: Any) -> Autodiscover:
    return Autodiscover(access, version="Exchange2013_SP1", **{"resolve": no_records} | more)


async def discovered(
    internet: Internet, *mailboxes: str, url: str | None = None, ews_url: str | None = None
) -> Mapping[str, Placement | Failure]:
    async with connected(internet) as access:
        return await autodiscover_for(
            access, url=url, ews_url=ews_url, hosts=["*.example.net", "example.net"]
        ).discover(mailboxes)


async def code_of(internet: Internet, ews_url: str | None = None, url: str | None = None) -> str:
    found = (await discovered(internet, "ann@example.org", ews_url=ews_url, url=url))["ann@example.org"]
    assert isinstance(found, Failure), found
    return found.code


# --- requests and results


async def test_requests_have_at_most_100_mailboxes() -> None:
    internet = Internet({soap_url("example.org"): soap()})
    mailboxes = [f"user{n:03}@example.org" for n in range(250)]
    found = await discovered(internet, *mailboxes)
    assert found == {mailbox: Placement(EWS, "DAG1", mailbox) for mailbox in mailboxes}
    batches = [users_of(asked) for asked in internet.asked]
    assert sorted(map(len, batches)) == [50, 100, 100]
    assert sorted(chain(*batches)) == mailboxes


async def test_each_request_has_an_anchor_mailbox_and_credentials() -> None:
    internet = Internet({soap_url("example.org"): Page(404), pox_url("example.org"): pox(pox_at_home)})
    await discovered(internet, "ann@example.org", "bob@example.org")
    assert [asked.headers["x-anchormailbox"] for asked in internet.asked] == [
        "ann@example.org",  # the first mailbox of the SOAP request
        "ann@example.org",
        "bob@example.org",
    ]
    assert {asked.headers["authorization"] for asked in internet.asked} == {"Basic c3ZjOnNlY3JldA=="}
    assert {asked.headers["content-type"] for asked in internet.asked} == {"text/xml; charset=utf-8"}


async def test_each_mail_domain_is_asked_for_its_own_mailboxes() -> None:
    internet = Internet({soap_url("example.org"): soap(), soap_url("example.net"): soap()})
    await discovered(internet, "ann@example.org", "bob@example.net", "cat@example.org")
    assert sorted((asked.url, users_of(asked)) for asked in internet.asked) == [
        (soap_url("example.net"), ["bob@example.net"]),
        (soap_url("example.org"), ["ann@example.org", "cat@example.org"]),
    ]


async def test_grouping_information_may_be_missing() -> None:
    internet = Internet({soap_url("example.org"): soap(lambda _: user(InternalEwsUrl=EWS))})
    assert await discovered(internet, "ann@example.org") == {
        "ann@example.org": Placement(EWS, "", "ann@example.org")
    }


async def test_the_external_url_is_preferred() -> None:
    both = user(InternalEwsUrl="https://inside.example.org/EWS", ExternalEwsUrl=EWS)
    internet = Internet({soap_url("example.org"): soap(lambda _: both)})
    found = (await discovered(internet, "ann@example.org"))["ann@example.org"]
    assert isinstance(found, Placement)
    assert found.ews_url == EWS


async def test_a_refused_mailbox_does_not_affect_the_others() -> None:
    def answer_for(mailbox: str) -> str:
        return user("InvalidUser", message="no such user") if mailbox.startswith("bob") else at_home(mailbox)

    internet = Internet({soap_url("example.org"): soap(answer_for)})
    found = await discovered(
        internet, "ann@example.org", "bob@example.org", "cat@example.org", ews_url=FALLBACK
    )
    assert found == {
        "ann@example.org": Placement(EWS, "DAG1", "ann@example.org"),
        "bob@example.org": Failure(code="InvalidUser", text="no such user"),
        "cat@example.org": Placement(EWS, "DAG1", "cat@example.org"),
    }


# --- redirects


async def test_a_redirect_address_is_asked_for_at_its_own_domain() -> None:
    internet = Internet(
        {
            soap_url("example.org"): soap(lambda _: user("RedirectAddress", "ann@tenant.example.net")),
            soap_url("tenant.example.net"): soap(),
        }
    )
    found = await discovered(internet, "ann@example.org")
    assert found == {"ann@example.org": Placement(EWS, "DAG1", "ann@example.org")}
    assert [(asked.url, users_of(asked)) for asked in internet.asked] == [
        (soap_url("example.org"), ["ann@example.org"]),
        (soap_url("tenant.example.net"), ["ann@tenant.example.net"]),
    ]
    assert internet.asked[1].headers["x-anchormailbox"] == "ann@tenant.example.net"


async def test_mailboxes_with_the_same_redirect_share_a_request() -> None:
    def moved(mailbox: str) -> str:
        name = mailbox.partition("@")[0]
        return user("RedirectAddress", f"{name}@tenant.example.net")

    internet = Internet({soap_url("example.org"): soap(moved), soap_url("tenant.example.net"): soap()})
    mailboxes = [f"user{n:03}@example.org" for n in range(100)]
    found = await discovered(internet, *mailboxes)
    assert found == {mailbox: Placement(EWS, "DAG1", mailbox) for mailbox in mailboxes}
    assert internet.urls == [soap_url("example.org"), soap_url("tenant.example.net")]


async def test_a_redirect_url_is_not_remembered_for_other_mailboxes() -> None:
    elsewhere = soap_url("site2.example.org")

    def answer_for(mailbox: str) -> str:
        return user("RedirectUrl", elsewhere) if mailbox.startswith("bob") else at_home(mailbox)

    site2 = user(ExternalEwsUrl="https://site2.example.org/EWS", GroupingInformation="DAG2")
    internet = Internet({soap_url("example.org"): soap(answer_for), elsewhere: soap(lambda _: site2)})
    async with connected(internet) as access:
        autodiscover = autodiscover_for(access)
        found = await autodiscover.discover(["ann@example.org", "bob@example.org"])
        await autodiscover.discover(["cat@example.org"])
    assert found["ann@example.org"] == Placement(EWS, "DAG1", "ann@example.org")
    assert found["bob@example.org"] == Placement("https://site2.example.org/EWS", "DAG2", "bob@example.org")
    assert internet.urls == [soap_url("example.org"), elsewhere, soap_url("example.org")]


@pytest.mark.parametrize(
    "answer",
    [
        Page(302, headers=[("Location", soap_url("example.org"))]),
        Page(451, headers=[("X-MS-Location", soap_url("example.org"))]),
    ],
    ids=["302", "451"],
)
async def test_an_http_redirect_loop_ends_after_ten_redirects(answer: Answer | Page) -> None:
    internet = Internet({soap_url("example.org"): answer})
    assert await code_of(internet, ews_url=FALLBACK) == "TooManyRedirects"
    assert len([url for url in internet.urls if url.startswith("https:")]) == 11


async def test_changing_redirect_addresses_end_after_ten_redirects() -> None:
    def answer_for(mailbox: str) -> str:
        return user("RedirectAddress", f"x{mailbox}")

    internet = Internet({soap_url("example.org"): soap(answer_for)})
    assert await code_of(internet, ews_url=FALLBACK) == "TooManyRedirects"
    assert len([url for url in internet.urls if url.startswith("https:")]) == 11


OTHERS = {"ann@example.org": "bob@example.org", "bob@example.org": "ANN@example.org"}
LOOPS = {
    "same address": soap(lambda mailbox: user("RedirectAddress", mailbox)),
    "same address in capitals": soap(lambda mailbox: user("RedirectAddress", mailbox.upper())),
    "same URL": soap(lambda _: user("RedirectUrl", soap_url("example.org"))),
    "same URL in capitals": soap(lambda _: user("RedirectUrl", f"HTTPS://Example.ORG:443{soap_url('')[8:]}")),
    "two addresses": soap(lambda mailbox: user("RedirectAddress", OTHERS[mailbox])),
}  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
async def test_an_endpoint_that_redirects_in_a_loop_is_skipped(loop: Answer) -> None:
    internet = Internet({soap_url("example.org"): loop, soap_url("autodiscover.example.org"): soap()})
    found = await discovered(internet, "ann@example.org")
    assert found == {"ann@example.org": Placement(EWS, "DAG1", "ann@example.org")}
    assert internet.urls[-1] == soap_url("autodiscover.example.org")
    assert len(internet.urls) <= 3


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
async def test_a_redirect_loop_at_every_endpoint_is_a_failure(loop: Answer) -> None:
    internet = Internet({soap_url("example.org"): loop})
    assert await code_of(internet) == "TooManyRedirects"
    assert len([url for url in internet.urls if url.startswith("https:")]) <= 2


async def test_a_loop_of_two_domains_continues_at_the_next_endpoint_of_the_first() -> None:
    def away(mailbox: str) -> str:
        return user("RedirectAddress", mailbox.replace("example.org", "tenant.example.net"))

    def back(mailbox: str) -> str:
        return user("RedirectAddress", mailbox.replace("tenant.example.net", "example.org").title())

    internet = Internet(
        {
            soap_url("example.org"): soap(away),
            soap_url("tenant.example.net"): soap(back),
            soap_url("autodiscover.example.org"): soap(),
        }
    )
    async with connected(internet) as access:
        found = await autodiscover_for(access, hosts=["tenant.example.net", "example.org"]).discover(
            ["ann@example.org"]
        )
    assert found == {"ann@example.org": Placement(EWS, "DAG1", "ann@example.org")}


async def test_a_redirect_loop_of_one_mailbox_keeps_the_answers_for_the_others() -> None:
    def answer_for(mailbox: str) -> str:
        return user("RedirectAddress", mailbox) if mailbox.startswith("bob") else at_home(mailbox)

    elsewhere = user(ExternalEwsUrl="https://site2.example.org/EWS", GroupingInformation="DAG2")
    internet = Internet(
        {
            soap_url("example.org"): soap(answer_for),
            soap_url("autodiscover.example.org"): soap(lambda _: elsewhere),
        }
    )
    found = await discovered(internet, "ann@example.org", "bob@example.org")
    assert found["ann@example.org"] == Placement(EWS, "DAG1", "ann@example.org")
    assert found["bob@example.org"] == Placement("https://site2.example.org/EWS", "DAG2", "bob@example.org")


# --- EWS URLs


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"ExternalEwsUrl": "https://evil.example/EWS"}, "UntrustedRedirect"),
        ({"InternalEwsUrl": "https://evil.example/EWS"}, "UntrustedRedirect"),
        ({"ExternalEwsUrl": "https://example.org.evil.example/EWS"}, "UntrustedRedirect"),
        ({"ExternalEwsUrl": "http://mail.example.org/EWS"}, "InsecureRedirect"),
        ({"ExternalEwsUrl": "https://[bad"}, "InvalidUrl"),
        ({"ExternalEwsUrl": "https://xn--.example.org/EWS"}, "InvalidUrl"),
        ({"ExternalEwsUrl": "https://mail.example.org@evil.example/EWS"}, "InvalidUrl"),
    ],
)
@pytest.mark.parametrize("protocol", ["soap", "pox"])
async def test_an_ews_url_that_is_not_allowed_is_a_failure(
    protocol: str, settings: dict[str, str], code: str
) -> None:
    ((kind, url),) = settings.items()
    if protocol == "soap":
        internet = Internet({soap_url("example.org"): soap(lambda _: user(**settings))})
    else:
        type_ = "EXPR" if kind == "ExternalEwsUrl" else "EXCH"
        account_xml = (
            f"<Account><Protocol><Type>{type_}</Type><EwsUrl>{escape(url)}</EwsUrl></Protocol></Account>"
        )
        internet = Internet({pox_url("example.org"): pox(lambda _: account_xml)})
    found = (await discovered(internet, "ann@example.org"))["ann@example.org"]
    assert isinstance(found, Failure)
    assert found.code == code
    assert "named by https://example.org/autodiscover/" in found.text
    assert "for ann@example.org" in found.text


async def test_the_internal_url_is_used_where_the_external_one_is_not_allowed() -> None:
    settings = user(ExternalEwsUrl="https://evil.example/EWS", InternalEwsUrl=EWS, GroupingInformation="DAG1")
    internet = Internet({soap_url("example.org"): soap(lambda _: settings)})
    found = await discovered(internet, "ann@example.org")
    assert found == {"ann@example.org": Placement(EWS, "DAG1", "ann@example.org")}


@pytest.mark.parametrize(
    "target", ["https://[bad", "https://xn--.example.org/", "//\\evil", "https://a:99999/"]
)
@pytest.mark.parametrize("header", [(302, "Location"), (451, "X-MS-Location")], ids=["302", "451"])
async def test_a_redirect_to_an_invalid_url_is_a_failure(header: tuple[int, str], target: str) -> None:
    status, name = header
    internet = Internet({soap_url("example.org"): Page(status, headers=[(name, target)])})
    assert await code_of(internet, url=soap_url("example.org")) == "InvalidUrl"


# --- mailboxes that the front end does not know


async def test_a_mailbox_unknown_to_the_front_end_does_not_affect_the_others() -> None:
    def answer(asked: Asked) -> Page:
        if asked.headers["x-anchormailbox"].startswith("ann"):
            return Page(404, headers=[("X-CasErrorCode", "UserNotFound")])
        return soap()(asked)

    internet = Internet({soap_url("example.org"): answer})
    found = await discovered(internet, "ann@example.org", "bob@example.org")
    assert found["bob@example.org"] == Placement(EWS, "DAG1", "bob@example.org")
    failure = found["ann@example.org"]
    assert isinstance(failure, Failure)
    assert failure.code == "UserNotFound"


# --- non-ASCII addresses


async def test_a_non_ascii_domain_is_asked_at_its_ascii_form() -> None:
    host = "xn--mller-kva.example"
    settings = user(ExternalEwsUrl=f"https://mail.{host}/EWS", GroupingInformation="DAG1")
    internet = Internet({soap_url(host): soap(lambda _: settings)})
    found = await discovered(internet, "jürgen@müller.example")
    assert found == {
        "jürgen@müller.example": Placement(f"https://mail.{host}/EWS", "DAG1", "jürgen@müller.example")
    }
    # The test's server decodes headers as UTF-8.
    assert internet.asked[0].headers["x-anchormailbox"] == "jürgen@müller.example"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_an_http_redirect_is_followed_with_body_and_headers(status: int) -> None:
    internet = Internet(
        {
            soap_url("example.org"): Page(status, headers=[("Location", soap_url("mail.example.org"))]),
            soap_url("mail.example.org"): soap(),
        }
    )
    found = await discovered(internet, "ann@example.org")
    assert found == {"ann@example.org": Placement(EWS, "DAG1", "ann@example.org")}
    assert internet.asked[0].body == internet.asked[1].body
    assert internet.asked[1].headers["x-anchormailbox"] == "ann@example.org"


@pytest.mark.parametrize(
    "answer",
    [
        soap(lambda _: user("RedirectUrl", "http://plain.example.org/autodiscover/autodiscover.svc")),
        Page(302, headers=[("Location", "http://plain.example.org/autodiscover/autodiscover.svc")]),
    ],
    ids=["RedirectUrl", "302"],
)
async def test_credentials_are_never_sent_over_http(answer: Answer | Page) -> None:
    internet = Internet({soap_url("example.org"): answer})
    assert await code_of(internet, url=soap_url("example.org")) == "InsecureRedirect"
    assert internet.connects == ["example.org"]


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        (soap(lambda _: user("RedirectUrl", soap_url("evil.example"))), "Autodiscover"),
        (soap(lambda _: user("RedirectAddress", "ann@evil.example")), "Autodiscover"),
        (Page(302, headers=[("Location", soap_url("evil.example"))]), soap_url("example.org")),
        (
            Page(451, headers=[("X-MS-Location", soap_url("example.org.evil.example"))]),
            soap_url("example.org"),
        ),
    ],
    ids=["RedirectUrl", "RedirectAddress", "302", "451"],
)
async def test_credentials_are_not_sent_to_an_untrusted_host(answer: Answer | Page, source: str) -> None:
    internet = Internet({soap_url("example.org"): answer, soap_url("evil.example"): soap()})
    found = await discovered(internet, "ann@example.org", url=soap_url("example.org"))
    failure = found["ann@example.org"]
    assert isinstance(failure, Failure)
    assert failure.code == "UntrustedRedirect"
    assert failure.text.startswith(f"{source} names the host ")
    assert (
        "evil.example, which is not trusted: if it is correct, add it to [exchange] autodiscover_hosts"
        in failure.text
    )
    assert internet.connects == ["example.org"]


# --- endpoints


@pytest.mark.parametrize(
    "page",
    [
        Page(404),
        Page(405),
        Page(415),
        Page(200, b"<html><title>Welcome</title></html>", [("Content-Type", "text/html")]),
    ],
    ids=["404", "405", "415", "200 with HTML"],
)
async def test_without_soap_pox_is_asked_for_each_mailbox(page: Page) -> None:
    internet = Internet({soap_url("example.org"): page, pox_url("example.org"): pox(pox_at_home)})
    found = await discovered(internet, "ann@example.org", "bob@example.org")
    assert found == {name: Placement(EWS, "DAG1", name) for name in ("ann@example.org", "bob@example.org")}
    assert internet.urls == [soap_url("example.org"), pox_url("example.org"), pox_url("example.org")]


async def test_pox_refuses_one_mailbox_and_redirects_another() -> None:
    def answer_for(mailbox: str) -> str:
        match mailbox.partition("@")[0]:
            case "bob":
                return (
                    '<Error Time="10:00" Id="1"><ErrorCode>500</ErrorCode><Message>unknown</Message></Error>'
                )
            case "cat":
                return account("<Action>redirectAddr</Action><RedirectAddr>cat@example.net</RedirectAddr>")
        return pox_at_home(mailbox)

    internet = Internet({pox_url("example.org"): pox(answer_for), pox_url("example.net"): pox(pox_at_home)})
    found = await discovered(internet, "ann@example.org", "bob@example.org", "cat@example.org")
    assert found == {
        "ann@example.org": Placement(EWS, "DAG1", "ann@example.org"),
        "bob@example.org": Failure(code="Pox500", text="unknown"),
        "cat@example.org": Placement(EWS, "DAG1", "cat@example.org"),
    }


async def test_a_configured_pox_endpoint_is_asked_by_pox_only() -> None:
    internet = Internet({pox_url("example.org"): pox(pox_at_home)})
    found = await discovered(internet, "ann@elsewhere.example", url=pox_url("example.org"))
    assert found == {"ann@elsewhere.example": Placement(EWS, "DAG1", "ann@elsewhere.example")}
    assert internet.urls == [pox_url("example.org")]


@pytest.mark.parametrize(
    "website",
    [
        *map(Page, (400, 401, 403, 404, 410, 429, 503, 504, 522)),
        Page(302),
        Page(302, headers=[("Location", "http://www.example.org/")]),
        Page(302, headers=[("Location", soap_url("example.org"))]),
        Page(200, b"<!DOCTYPE page><page/>", [("Content-Type", "application/xml")]),
        Page(200, b"<page><br></page>", [("Content-Type", "application/xml")]),
    ],
    ids=[
        *("400", "401", "403", "404", "410", "429", "503", "504", "522"),
        *("redirect without a target", "redirect to http", "redirect loop", "a document type", "no XML"),
    ],
)
async def test_a_website_at_the_mail_domain_does_not_stop_discovery(website: Page) -> None:
    site = {soap_url("example.org"): website, pox_url("example.org"): website}
    internet = Internet({**site, soap_url("autodiscover.example.org"): soap()})
    found = await discovered(internet, "ann@example.org")
    assert found == {"ann@example.org": Placement(EWS, "DAG1", "ann@example.org")}


@pytest.mark.parametrize("page", [Page(401), Page(403), Page(503)], ids=["401", "403", "503"])
async def test_a_website_that_refuses_only_pox_does_not_stop_discovery(page: Page) -> None:
    site = {soap_url("example.org"): Page(404), pox_url("example.org"): page}
    internet = Internet({**site, soap_url("autodiscover.example.org"): soap()})
    found = await discovered(internet, "ann@example.org", "bob@example.org")
    assert found == {name: Placement(EWS, "DAG1", name) for name in ("ann@example.org", "bob@example.org")}


async def test_a_pox_failure_of_one_mailbox_does_not_affect_the_others() -> None:
    def answer(asked: Asked) -> Page:
        return Page(503) if b"bob@" in asked.body else pox(pox_at_home)(asked)

    found = await discovered(
        Internet({pox_url("example.org"): answer}), "ann@example.org", "bob@example.org", "cat@example.org"
    )
    assert [getattr(place, "code", "") for place in found.values()] == ["", "Http503", ""]


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({soap_url("autodiscover.example.org"): soap()}, Placement(EWS, "DAG1", "ann@example.org")),
        ({}, Placement(FALLBACK, "", "ann@example.org")),
    ],
    ids=["autodiscover.", "ews_url"],
)
async def test_a_website_with_another_authentication_scheme_does_not_stop_discovery(
    more: dict[str, Answer | Page], place: Placement
) -> None:
    website = Page(401, headers=[("WWW-Authenticate", 'Basic realm="intranet"')])
    internet = Internet({soap_url("example.org"): website, **more})
    ntlm = Accounts.single(Ntlm(Credentials("svc", Secret("secret"))))
    async with connected(internet) as access:
        found = await autodiscover_for(replace(access, auth=ntlm), ews_url=FALLBACK).discover(
            ["ann@example.org"]
        )
    assert found == {"ann@example.org": place}


HostError = Failure | Exception | None
"""The result of a request to a host; None: it never ends."""


async def found_by(hosts: Mapping[str, HostError], ews_url: str | None = None) -> Placement | Failure:
    """Return what is found if these hosts fail, and all others have Autodiscover."""
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host not in hosts:
            body = soap()(Asked(str(request.url), {}, request.content)).body
            return httpx.Response(200, stream=httpx.ByteStream(body))
        match hosts[request.url.host]:
            case Failure() as failure:
                raise ExchangeError(failure)
            case None:
                await trio.sleep_forever()
            case Exception() as error:
                raise error
        raise AssertionError

    async with connected(Internet()) as access:
        access = replace(access, transport=httpx.MockTransport(answer), request_timeout=30)
        return (await autodiscover_for(access, ews_url=ews_url).discover(["ann@example.org"]))[
            "ann@example.org"
        ]


SCHEMES_FAIL = ("SchemeNotOffered", "HandshakeRefused", "HandshakeBroken", "KerberosFailed")


@pytest.mark.parametrize(
    "error",
    [
        *(Failure(code=code) for code in SCHEMES_FAIL),
        httpx.ReadError(""),
        httpx.RemoteProtocolError("peer closed connection (incomplete chunked read)"),
        None,
    ],
    ids=[*SCHEMES_FAIL, "ConnectionReset", "StreamIncomplete", "ReadTimeout"],
)
async def test_after_a_failure_at_the_mail_domain_the_next_host_is_asked(
    autojump_clock: trio.testing.MockClock, error: HostError
) -> None:
    assert await found_by({"example.org": error}) == Placement(EWS, "DAG1", "ann@example.org")


@pytest.mark.parametrize("code", ["AccountLocked", "PasswordRefused", "TokenRefused", "ServerBusy"])
async def test_a_failure_of_the_account_is_returned_at_once(code: str) -> None:
    found = await found_by({"example.org": Failure(code=code)}, ews_url=FALLBACK)
    assert found == Failure(code=code)


async def test_after_an_untrusted_certificate_the_next_host_is_asked() -> None:
    internet = Internet({soap_url("example.org"): soap(), soap_url("autodiscover.example.org"): soap()})
    internet.untrusted.add("example.org")
    assert isinstance((await discovered(internet, "ann@example.org"))["ann@example.org"], Placement)
    assert internet.urls == [soap_url("autodiscover.example.org")]


async def test_the_endpoint_that_answered_is_asked_first_the_next_time() -> None:
    internet = Internet({soap_url("autodiscover.example.org"): soap()})
    async with connected(internet) as access:
        autodiscover = autodiscover_for(access)
        await autodiscover.discover(["ann@example.org"])
        await autodiscover.discover(["bob@example.org"])
        assert internet.connects == ["example.org", "autodiscover.example.org", "autodiscover.example.org"]
        # Autodiscover moves to another host, and is found again.
        internet.pages = {soap_url("example.org"): soap()}
        found = await autodiscover.discover(["cat@example.org"])
    assert found == {"cat@example.org": Placement(EWS, "DAG1", "cat@example.org")}


# --- no endpoint, and temporary failures


async def test_without_any_endpoint_the_configured_url_is_used() -> None:
    mailboxes = ["ann@example.org", "bob@example.org"]
    found = await discovered(Internet(), *mailboxes, ews_url=FALLBACK)
    assert found == {mailbox: Placement(FALLBACK, "", mailbox) for mailbox in mailboxes}


async def test_without_any_endpoint_and_configured_url_discovery_fails() -> None:
    internet = Internet()
    with structlog.testing.capture_logs() as lines:
        assert await code_of(internet) == "ConnectFailed"
    assert internet.connects == ["example.org", "autodiscover.example.org"]
    assert [(line["event"], line["url"]) for line in lines if "url" in line] == [
        ("discovery.endpoint_failed", soap_url("example.org")),
        ("discovery.endpoint_failed", soap_url("autodiscover.example.org")),
    ]
    assert internet.urls == ["http://autodiscover.example.org/autodiscover/autodiscover.xml"]


async def test_without_a_url_in_the_response_the_configured_one_is_used() -> None:
    internet = Internet({soap_url("example.org"): soap(lambda _: user(GroupingInformation="DAG1"))})
    assert await code_of(internet) == "SettingIsNotAvailable"
    assert await discovered(internet, "ann@example.org", ews_url=FALLBACK) == {
        "ann@example.org": Placement(FALLBACK, "", "ann@example.org")
    }


@pytest.mark.parametrize(
    ("page", "code", "wait"),
    [
        (Page(200, response("", "ServerBusy")), "ServerBusy", None),
        (Page(200, response(user("ServerBusy"))), "ServerBusy", None),
        (Page(200, response(user("InternalServerError"))), "InternalServerError", None),
        (Page(503, headers=[("Retry-After", "30")]), "Http503", 30.0),
        (Page(429, headers=[("Retry-After", "30")]), "Http429", 30.0),
        (Page(502), "Http502", None),
        (Page(500), "Http500", None),
        (Page(401), "Http401", None),
    ],
)
async def test_after_a_temporary_failure_the_configured_url_is_not_used(
    page: Page, code: str, wait: float | None
) -> None:
    internet = Internet({soap_url("example.org"): page, pox_url("example.org"): page})
    found = (await discovered(internet, "ann@example.org", ews_url=FALLBACK))["ann@example.org"]
    assert isinstance(found, Failure)
    assert (found.code, found.wait) == (code, wait)


@pytest.mark.parametrize("code", ["HandshakeRefused", "KerberosFailed", "HandshakeBroken", "ReadTimeout"])
async def test_after_a_refusal_or_timeout_the_configured_url_is_not_used(code: str) -> None:
    unresolved = Failure(code="NameNotResolved")
    found = await found_by(
        {"example.org": Failure(code=code), "autodiscover.example.org": unresolved}, ews_url=FALLBACK
    )
    assert isinstance(found, Failure)
    assert found.code == code


@pytest.mark.parametrize(
    ("website", "autodiscover", "reported"),
    [
        ("HandshakeRefused", "Http503", "Http503"),  # temporary, so that discovery is soon retried
        ("Http503", "HandshakeRefused", "HandshakeRefused"),
        ("SchemeNotOffered", "ConnectFailed", "ConnectFailed"),
        ("SchemeNotOffered", "NameNotResolved", "SchemeNotOffered"),
        ("Http404", "NameNotResolved", "NameNotResolved"),
        ("Http503", "AccountLocked", "AccountLocked"),
    ],
)
async def test_the_failure_of_the_likeliest_host_is_reported(
    website: str, autodiscover: str, reported: str
) -> None:
    failures = {"example.org": Failure(code=website), "autodiscover.example.org": Failure(code=autodiscover)}
    found = await found_by(failures)
    assert isinstance(found, Failure)
    assert found.code == reported


async def test_the_failure_of_the_endpoint_that_answered_before_is_reported() -> None:
    internet = Internet({soap_url("example.org"): soap()})
    async with connected(internet) as access:
        autodiscover = autodiscover_for(access, ews_url=FALLBACK)
        await autodiscover.discover(["ann@example.org"])
        internet.pages = {
            soap_url("example.org"): Page(503, headers=[("Retry-After", "30")]),
            soap_url("autodiscover.example.org"): Page(401),
        }
        found = (await autodiscover.discover(["ann@example.org"]))["ann@example.org"]
        assert isinstance(found, Failure)
        assert (found.code, found.wait) == ("Http503", 30.0)


async def test_a_response_with_missing_users_is_a_failure_for_all() -> None:
    """Users and answers are matched only by their order."""
    internet = Internet({soap_url("example.org"): Page(200, response(at_home("")))})
    found = await discovered(internet, "ann@example.org", "bob@example.org")
    assert all(isinstance(failure, Failure) for failure in found.values())
    assert list(found) == ["ann@example.org", "bob@example.org"]
