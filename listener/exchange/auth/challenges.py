"""What a 401 asks for: its WWW-Authenticate headers (RFC 9110 section 11.6.1)."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error

import httpx

# A scheme begins a header or follows a comma; a parameter has an equals sign where a scheme has a blank or nothing.
# Quantifiers are possessive, and a parameter's name begins where none is going on: a header that a server chooses
# must not take quadratic time.
_SCHEME = re.compile(r"(?:^|,)\s*+([A-Za-z][A-Za-z0-9-]{0,63}+)(?=\s*+(?:$|,)|\s++[^\s=])")
_PARAMETER = re.compile(
    r"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]++)\s*+=\s*+(?:\"((?:[^\"\\]|\\.)*+)\"|([^\s,\"]++))"
)
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*+(?:\"|\\?$)")
MOST_SCHEMES = 10
"""Schemes that are looked at. Servers offer three or four."""
HEADER_LENGTH = 8192
"""Characters of a challenge that are looked at, but for the token of a handshake."""


def offered(headers: httpx.Headers) -> list[str]:
    """The names of the schemes, as the server writes them."""
    found = [name for value in _challenges(headers) for name in _SCHEME.findall(_unquoted(value))]
    return list(dict.fromkeys(found))[:MOST_SCHEMES]


def token(headers: httpx.Headers, scheme: str) -> bytes | None:
    """The token that follows the scheme, as in `Negotiate YII…`; None if there is none, or it is no base64."""
    for value in headers.get_list("www-authenticate", split_commas=True):
        name, _, told = value.strip().partition(" ")
        if name.lower() == scheme.lower() and told.strip():
            try:
                return b64decode(told.strip(), validate=True)
            except (ValueError, Error):
                return None
    return None


def parameters(headers: httpx.Headers, scheme: str) -> dict[str, str]:
    """The parameters of the scheme's challenge; names are in lower case."""
    for value in _challenges(headers):
        plain = _unquoted(value)
        for start in re.finditer(_SCHEME, plain):
            if start[1].lower() == scheme.lower():
                rest = _SCHEME.search(plain, start.end(1))
                mine = value[start.end(1) : rest.start(1) if rest else None]
                return {
                    name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare
                    for name, quoted, bare in _PARAMETER.findall(mine)
                }
    return {}


def _challenges(headers: httpx.Headers) -> list[str]:
    return [value[:HEADER_LENGTH] for value in headers.get_list("www-authenticate")[:MOST_SCHEMES]]


def _unquoted(value: str) -> str:
    """The header with what is quoted made harmless, at the same places. A quote may lack its end."""
    return _QUOTED.sub(lambda quoted: '"' + "_" * (len(quoted[0]) - 1), value)
