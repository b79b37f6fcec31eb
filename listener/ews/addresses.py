"""Email addresses of outside origin: one parser, which returns a value or raises AddressError.

An address may hold letters outside of ASCII on both sides (RFC 6531). EWS requests and headers carry it as it is, in
UTF-8. DNS names that are made of its domain are in IDNA's ASCII form.
"""

import re

from listener.ews.urls import UrlError, parse_host

LONGEST = 320
"""Characters that an address may have: 64, the sign and 255 (RFC 5321 section 4.5.3.1)."""


class AddressError(ValueError):
    """The text is not an email address."""


def parse_address(text: str) -> str:
    """An SMTP address or user principal name in lower case. Raises AddressError."""
    address = text.strip().lower()
    if not _is_address(address):
        shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
        raise AddressError(f'"{shown}" is no address of the form name@domain')
    return address


def mail_domain(address: str) -> str:
    """The domain of an address as a DNS name: in lower case, IDNA's ASCII form. Raises AddressError."""
    try:
        return parse_host(address.rpartition("@")[2])
    except UrlError as error:
        raise AddressError(f"the domain of the address is {error}") from None


def header_value(text: str) -> bytes:
    """The text as the value of an HTTP header.

    X-AnchorMailbox holds the address as UTF-8: HTTP leaves the encoding of octets above 127 open (RFC 9110
    section 5.5), and ASP.NET, which Exchange's front end is written in, reads headers as UTF-8. What a header cannot
    hold is left out.
    """
    return "".join(filter(str.isprintable, text)).strip().encode("utf-8", "ignore")


def _is_address(address: str) -> bool:
    if len(address) > LONGEST or not address.isprintable() or not _FORM.fullmatch(address):
        return False
    try:
        mail_domain(address)
    except AddressError:
        return False
    return True


_FORM = re.compile(r"[^\s@<>\"(),:;\\\[\]]+@[^\s@<>\"(),:;\\\[\]]+")
