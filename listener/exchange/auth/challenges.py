"""What a 401 asks for: its WWW-Authenticate headers (RFC 9110 section 11.6.1)."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error

import httpx

# A scheme begins a header or follows a comma; a parameter has an equals sign where a scheme has a blank or nothing.
_SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9-]*)(?=\s*(?:$|,|\s+[^\s=]))")
_PARAMETER = re.compile(r"([A-Za-z0-9_-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))")


def offered(headers: httpx.Headers) -> list[str]:
    """The names of the schemes, as the server writes them."""
    found = [
        name for value in headers.get_list("www-authenticate") for name in _SCHEME.findall(_unquoted(value))
    ]
    return list(dict.fromkeys(found))


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
    for value in headers.get_list("www-authenticate"):
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


def _unquoted(value: str) -> str:
    """The header with what is quoted made harmless, at the same places."""
    return re.sub(r"\"(?:[^\"\\]|\\.)*\"", lambda quoted: '"' + "_" * (len(quoted[0]) - 2) + '"', value)
