"""Parse and validate untrusted email addresses.

An address may have letters outside of ASCII in both parts (RFC 6531). EWS requests and headers contain it as UTF-8.
DNS names from its domain use IDNA's ASCII form.
"""

import re
import unicodedata

from listener.ews.urls import UrlError, parse_host

MAX_LENGTH = 571
"""Characters that Exchange allows in an SMTP address ("Recipient attributes", learn.microsoft.com)."""


class AddressError(ValueError):
    """The text is not an email address."""


def parse_address(text: str) -> str:
    """Return an SMTP address or user principal name in lower case and Unicode form NFC. Raises AddressError."""
    address = fold_address(text)
    hidden = next((sign for sign in address if unicodedata.category(sign)[0] in "CZ" and sign != " "), None)
    if hidden is not None:
        shown = "".join(
            sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in _short(text.strip())
        )
        name = unicodedata.name(hidden, "control character")
        raise AddressError(f'"{shown}" has the invisible character U+{ord(hidden):04X} ({name}): remove it')
    if not _is_address(address):
        raise AddressError(f'"{_short(text)}" is not a valid email address')
    return address


def fold_address(text: str) -> str:
    """Return the normalized form for comparing addresses and patterns of addresses."""
    return unicodedata.normalize("NFC", text.strip().lower())


def _short(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else f"{text[:40]}…"


def mail_domain(address: str) -> str:
    """Return the domain of an address as a DNS name in lower case and IDNA's ASCII form. Raises AddressError."""
    try:
        return parse_host(address.rpartition("@")[2])
    except UrlError as error:
        raise AddressError(f"the domain of the address is {error}") from None


def header_value(text: str) -> bytes:
    """Return the text as the value of an HTTP header, without characters that a header cannot contain.

    X-AnchorMailbox contains the address as UTF-8: HTTP does not define the encoding of octets above 127 (RFC 9110
    section 5.5), and ASP.NET, on which Exchange's front end runs, decodes headers as UTF-8.
    """
    return "".join(filter(str.isprintable, text)).strip().encode("utf-8", "ignore")


def _is_address(address: str) -> bool:
    if (
        len(address) > MAX_LENGTH
        or not address.isprintable()
        or not _FORM.fullmatch(address)
        or address.endswith(".")
    ):
        return False
    try:
        mail_domain(address)
    except AddressError:
        return False
    return True


_FORM = re.compile(r"[^\s@<>\"(),:;\\\[\]]+@[^\s@<>\"(),:;\\\[\]]+")
