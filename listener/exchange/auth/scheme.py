"""What the schemes of authentication have in common.

A user and a password, which may change while we run.

What a 401 asks for: its WWW-Authenticate headers (RFC 9110 section 11.6.1)."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error
from typing import Protocol

import httpx
import structlog
import trio

from listener.config.secrets import Secret, SecretError
from listener.config.values import is_loopback
from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.exchange.network import Network


class Scheme(Protocol):
    """How an account proves who it is. One object serves all groups of the account."""

    @property
    def account(self) -> str:
        """The name of the account, for people."""
        ...

    @property
    def password(self) -> str | None:
        """What an account can be locked by trying, None if there is no such thing."""
        ...

    @property
    def refusal(self) -> str:
        """What a 401 means that comes out of it, for people."""
        ...

    def over(self, network: Network) -> httpx.AsyncBaseTransport:
        """One group's way to a server, on which every request is made in the account's name.

        Its requests raise what httpx raises, and ExchangeError where it is the authentication that fails. A 401 that
        comes out of it is a refusal: whatever could be tried has been tried.
        """
        ...


def refused_password(user: str) -> str:
    """What a server means that does not say why."""
    return (
        f"the server refuses {user}: the password is wrong, or the account is locked, disabled or has expired (the "
        "server says the same to all of these)"
    )


def not_in_clear(url: httpx.URL, what: str) -> None:
    """Raises ExchangeError if `what` would be sent where others can read it."""
    if url.scheme != "https" and not is_loopback(str(url)):
        raise ExchangeError(Failure(code="InsecureUrl", text=f"{url} is not https: it would show {what}"))


def choose(offered: list[str], *wanted: str) -> str:
    """The first of the schemes wanted that the server offers, as we write it. Raises ExchangeError."""
    there = {name.lower() for name in offered}
    for name in wanted:
        if name.lower() in there:
            return name
    raise ExchangeError(not_offered(offered, *wanted))


def not_offered(offered: list[str], *wanted: str) -> Failure:
    """The server asks for something else."""
    told = f"offers {', '.join(offered)}" if offered else "offers no scheme of authentication"
    return Failure(
        code="SchemeNotOffered", text=f"the server {told}, and not {' or '.join(wanted)}", status=401
    )


log = structlog.get_logger()


class Credentials:
    """Who we are, and what proves it."""

    def __init__(self, user: str, password: Secret) -> None:
        self.user = user
        self._password = password
        self._renewing = trio.Lock()

    @property
    def password(self) -> str:
        return self._password.reveal()

    async def renewed(self, refused: str) -> bool:
        """Whether there is another password than the one that was refused: it is read again for that."""
        async with self._renewing:
            if self.password == refused:
                try:
                    # A command may take its time, and a file may lie on a network.
                    await trio.to_thread.run_sync(self._password.renew, abandon_on_cancel=True)
                except SecretError as error:
                    log.warning("auth.secret_unreadable", account=self.user, text=str(error))
        return self.password != refused


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


def offered_schemes(headers: httpx.Headers) -> list[str]:
    """The names of the schemes, as the server writes them."""
    found = [name for value in _challenges(headers) for name in _SCHEME.findall(_unquoted(value))]
    return list(dict.fromkeys(found))[:MOST_SCHEMES]


def challenge_token(headers: httpx.Headers, scheme: str) -> bytes | None:
    """The token that follows the scheme, as in `Negotiate YII…`; None if there is none, or it is no base64."""
    for value in headers.get_list("www-authenticate", split_commas=True):
        name, _, told = value.strip().partition(" ")
        if name.lower() == scheme.lower() and told.strip():
            try:
                return b64decode(told.strip(), validate=True)
            except (ValueError, Error):
                return None
    return None


def challenge_parameters(headers: httpx.Headers, scheme: str) -> dict[str, str]:
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
