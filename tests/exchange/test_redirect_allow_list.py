"""Which servers credentials may be sent to: one rule for whatever an answer names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.errors import ExchangeError
from listener.exchange.redirect_allow_list import RedirectAllowList

CONFIGURED = [
    "https://ex01.corp.example/EWS/Exchange.asmx",
    "https://localhost:8443/EWS",
    "http://127.0.0.1:8080/EWS",
]
BELIEVED = RedirectAllowList(["mail.partner.example", "*.tenant.example", "odd.example:444"], CONFIGURED)


def code_of(
    url: str, domain: str = "contoso.example", allow_list: RedirectAllowList = BELIEVED
) -> str | None:
    try:
        allow_list.url(url, domain, "Autodiscover")
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
def test_credentials_may_be_sent_there(url: str) -> None:
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
def test_credentials_may_not_be_sent_there(url: str, code: str | None) -> None:
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
def test_the_neighbors_of_a_configured_host_may_belong_to_others(configured: str, url: str) -> None:
    assert code_of(url, allow_list=RedirectAllowList([], [configured])) == "UntrustedRedirect"


@pytest.mark.parametrize("domain", ["com", "", ".", "xn--", "127.0.0.1"])
def test_a_mail_domain_that_is_no_domain_allows_no_other_host(domain: str) -> None:
    assert code_of("https://evil.com/EWS", domain) == "UntrustedRedirect"
    assert code_of("https://evil.127.0.0.1/EWS", domain) == "UntrustedRedirect"


def test_the_failure_says_what_was_named_by_whom_and_what_allows_it() -> None:
    with pytest.raises(ExchangeError) as caught:
        BELIEVED.url("https://evil.example/EWS", "contoso.example", "Autodiscover")
    text = caught.value.failure.text
    assert (
        text
        == "Autodiscover leads to evil.example: if that is right, allow it in [exchange] autodiscover_hosts"
    )


def test_a_redirect_is_never_followed_to_http() -> None:
    with pytest.raises(ExchangeError) as caught:
        BELIEVED.redirect("http://127.0.0.1:8080/EWS", "contoso.example", "a server")
    assert caught.value.failure.code == "InsecureRedirect"


@given(st.text(), st.text())
def test_anything_is_believed_or_a_failure(url: str, domain: str) -> None:
    code_of(url, domain)
    code_of(f"https://{url}", domain)
