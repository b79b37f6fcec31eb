"""URLs that are probably not what they should be, and other warnings about a configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.config.warnings import check_autodiscover_url, check_ews_url, warnings
from tests.test_config import good, problems

GOOD = "https://mail.example.com/EWS/Exchange.asmx"


@pytest.mark.parametrize(
    ("url", "reason", "instead"),
    [
        ("https://mail.example.com/owa", "/owa is Outlook on the web, not the EWS endpoint", GOOD),
        ("https://mail.example.com/owa/auth/logon.aspx?x=1", "/owa/auth/logon.aspx is Outlook on the web", GOOD),
        ("https://mail.example.com", "the URL has no path: it is the start page of the server", GOOD),
        ("https://mail.example.com/", "the URL has no path", GOOD),
        (
            "https://mail.example.com/ews/services.wsdl",
            "/ews/services.wsdl is the description of the service (WSDL)",
            GOOD,
        ),
        (f"{GOOD}?wsdl", "the path ends with a slash, or the URL has a query", GOOD),
        (f"{GOOD}/", "the path ends with a slash", GOOD),
        ("https://mail.example.com/EWS", "the path is /EWS, not the EWS endpoint", GOOD),
        ("https://mail.example.com/EWS/Exchange.asm", "the path is /EWS/Exchange.asm", GOOD),
        ("https://mail.example.com/autodiscover/autodiscover.svc", "is Autodiscover, not the EWS endpoint", GOOD),
        ("https://mail.example.com:444/ecp/", "is the Exchange admin center", GOOD.replace("com/", "com:444/")),
        ("http://mail.example.com:443/EWS/Exchange.asmx", "port 443 is usually for https", GOOD.replace("com/", "com:443/")),  # noqa: E501
        ("https://mail.example.com:80/EWS/Exchange.asmx", "port 80 is usually for http", "http://mail.example.com:80/EWS/Exchange.asmx"),
    ],
)  # fmt: skip
def test_a_url_that_is_not_ews_is_named_for_what_it_is(url: str, reason: str, instead: str) -> None:
    doubt = check_ews_url(url)
    assert doubt is not None
    assert reason in doubt.reason
    assert doubt.instead == instead
    assert str(doubt).endswith(f". Use {instead}")
    assert check_ews_url(instead) is None


@pytest.mark.parametrize(
    "url",
    [
        GOOD,
        "https://mail.example.com/ews/exchange.asmx",
        "http://127.0.0.1:8080/EWS/Exchange.asmx",
        "https://[::1]:8443/EWS/Exchange.ASMX",
    ],
)
def test_a_good_url_is_not_doubted(url: str) -> None:
    assert check_ews_url(url) is None


def test_autodiscover() -> None:
    assert check_autodiscover_url("https://a.example/Autodiscover/Autodiscover.svc") is None
    assert check_autodiscover_url("https://a.example/autodiscover/autodiscover.xml") is None
    assert str(check_autodiscover_url("https://a.example/EWS/Exchange.asmx")) == (
        "the path is /EWS/Exchange.asmx, not an Autodiscover endpoint. Use "
        "https://a.example/autodiscover/autodiscover.svc"
    )


@given(st.text(max_size=60))
def test_any_text_has_an_answer(text: str) -> None:
    for url in (text, f"https://{text}", f"https://h/{text}"):
        check_ews_url(url)
        check_autodiscover_url(url)


def test_warnings_of_a_configuration() -> None:
    config = good(
        exchange={"ews_url": "https://mail.example.com/owa", "autodiscover_url": GOOD},
        groups=[{"ews_url": "https://b.example.com", "mailboxes": ["b@example.com"]}],
        handlers={"a": {"use": "log", "filter": {"mailboxes": ["*@sales.example.com"]}}},
    )
    assert [warning.where for warning in warnings(config)] == [
        "exchange.ews_url",
        "exchange.autodiscover_url",
        "groups[0].ews_url",
        "handlers.a.filter.mailboxes[0]",
    ]
    assert warnings(good()) == []


@pytest.mark.parametrize(
    "url", ["mail.example.com/EWS/Exchange.asmx", "//mail.example.com/EWS/Exchange.asmx"]
)
def test_a_url_without_a_scheme_is_an_error_with_a_suggestion(url: str) -> None:
    assert problems(exchange={"ews_url": url}) == [
        f'exchange.ews_url: must be a URL of the form https://host/path, did you mean "{GOOD}"?'
    ]
    assert problems(exchange={"ews_url": "user:secret@mail.example.com"}) == [
        "exchange.ews_url: must be a URL of the form https://host/path"
    ]
