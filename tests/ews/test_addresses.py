"""The parser of untrusted email addresses returns a value or raises AddressError, never another exception."""

import re
from contextlib import suppress

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lxml import etree

from listener.ews.addresses import AddressError, header_value, mail_domain, parse_address

TEXTS = st.text() | st.tuples(st.text(), st.text()).map("@".join)


@given(TEXTS)
@example("jürgen@contoso.example")
@example("a@xn--.contoso.example")
@example("a@b..c")
@example("a\x01@contoso.example")
@example("a@" + "b" * 64)
@example("a" * 10_000 + "@contoso.example")
@example("\ud800@contoso.example")
def test_any_text_is_parsed_or_raises_address_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert parse_address(address) == address
    assert mail_domain(address).isascii()
    etree.Element("EmailAddress").text = address  # XML can contain it


@given(TEXTS)
def test_mail_domain_of_any_text_is_valid_or_raises_address_error(text: str) -> None:
    with suppress(AddressError):
        assert re.fullmatch(r"[a-z0-9_.:-]+", mail_domain(text))


@given(st.text())
def test_any_text_becomes_a_valid_header_value(text: str) -> None:
    headers = [(b"Host", b"h"), (b"X-AnchorMailbox", header_value(text))]
    h11.Request(method="POST", target="/", headers=headers)  # raises if the value cannot be sent


@pytest.mark.parametrize(
    ("address", "domain", "header"),
    [
        ("jürgen@contoso.example", "contoso.example", "jürgen@contoso.example".encode()),
        ("Ann@Müller.example", "xn--mller-kva.example", "ann@müller.example".encode()),
        ("ann@contoso.example", "contoso.example", b"ann@contoso.example"),
        ("小李@例え.jp", "xn--r8jz45g.jp", "小李@例え.jp".encode()),
    ],
)
def test_internationalized_addresses(address: str, domain: str, header: bytes) -> None:
    parsed = parse_address(address)
    assert mail_domain(parsed) == domain
    assert header_value(parsed) == header
