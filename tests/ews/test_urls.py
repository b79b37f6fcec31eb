"""The parser of untrusted URLs returns a value or raises UrlError, never another exception."""

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from listener.ews.urls import UrlError, host_of, is_loopback, join_url, parse_host, parse_url, server_of

PIECES = st.sampled_from(
    [
        "https://", "http://", "HTTPS:", "ftp://", "//", "[", "]", "::1", "xn--", "xn--mnchen-3ya", ".", "..", "@",
        ":",
        ":99999", ":0", ":٣", "%00", "%", "\\", "\t", "\n", "\0", " ", "ü", "ß", "\u200d", "\ud800", "。", "-", "_",
        "a" * 64, "1.2.3.4", "0x7f.1", "contoso.example", "/EWS/Exchange.asmx", "?q=ü", "#f", "user:secret@",
    ]
)  # fmt: skip
JOINED = st.lists(PIECES, max_size=8).map("".join)
TEXTS = st.text() | JOINED | JOINED.map("https://{}".format)


@given(TEXTS)
@example("https://[bad")
@example("https://xn--.contoso.example/")
@example("https://a.xn--/")
@example("https://mail.contoso.example:99999/")
@example("https://mail.contoso.example:٣/")
@example("https://mail.contoso.example/\x00\r\nHost: evil")
@example("https://" + "9" * 5000 + "/")
def test_any_text_is_a_url_or_raises_url_error(text: str) -> None:
    try:
        url = parse_url(text)
    except UrlError:
        return
    assert url.text.isascii()
    assert parse_url(url.text) == url
    # The HTTP client parses the text to the same host without raising.
    client = httpx.URL(url.text)
    assert client.raw_host.decode() == url.host
    assert isinstance(client.host, str)
    assert (client.port or {"http": 80, "https": 443}[client.scheme]) == url.port
    assert client.userinfo == b""
    httpx.Request("GET", url.text)


@given(TEXTS)
def test_any_reference_is_joined_or_raises_url_error(reference: str) -> None:
    try:
        url = join_url("https://mail.contoso.example/autodiscover/autodiscover.svc", reference)
    except UrlError:
        return
    assert parse_url(url.text) == url


@given(TEXTS)
def test_any_text_is_a_host_or_raises_url_error(text: str) -> None:
    try:
        host = parse_host(text)
    except UrlError:
        return
    assert host.isascii()
    assert host == host.lower()
    assert not host.endswith(".")
    if ":" not in host:
        assert parse_host(host) == host


@given(TEXTS)
def test_host_of_and_server_of_never_raise(text: str) -> None:
    assert isinstance(host_of(text), str)
    assert isinstance(server_of(text), str)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (
            "HTTPS://Mail.Contoso.Example:443/EWS/Exchange.asmx",
            "https://mail.contoso.example/EWS/Exchange.asmx",
        ),
        ("https://mail.contoso.example./EWS", "https://mail.contoso.example/EWS"),
        ("https://mail.contoso.example:8443/a?b=c#d", "https://mail.contoso.example:8443/a?b=c"),
        ("https://müller.example/ä", "https://xn--mller-kva.example/%C3%A4"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("https://contoso.ex\u0430mple/", "https://contoso.xn--exmple-4nf/"),  # a Cyrillic letter
    ],
)
def test_normalized_urls(text: str, normal: str) -> None:
    assert parse_url(text).text == normal


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@mail.contoso.example/",
        "https://mail.contoso.example@evil.example/",
        "https://@evil.example/",
        "https://mail.contoso.example\\@evil.example/",
        "https:///EWS",
        "https://",
        "mail.contoso.example/EWS",
        "https://a..b/",
        "https://mail.contoso.example:0/",
        "https://fe80::1%eth0/",
        "https://[fe80::1%25eth0]/",
        "https://mail.con%74oso.example/",
        "https://contoso.example/ EWS",
    ],
)
def test_invalid_urls(text: str) -> None:
    with pytest.raises(UrlError):
        parse_url(text)


def test_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.9.9.9", "::1"]))
    assert not any(
        map(is_loopback, ["127.0.0.1.evil.example", "localhost.evil.example", "127.999.0.1", "10.0.0.1", ""])
    )
