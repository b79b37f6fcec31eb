"""The interface of an authentication scheme, credentials, and the challenges of a 401 (RFC 9110 section 11.6.1)."""

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
from listener.ews.codes import ExchangeError, Failure
from listener.exchange.network import Network

log = structlog.get_logger()


class Scheme(Protocol):
    """How an account authenticates. All groups of the account share one object."""

    @property
    def account(self) -> str:
        """The name of the account, for logs and messages."""
        ...

    @property
    def password(self) -> str | None:
        """The password that can lock the account if it is wrong; None if the scheme has no such password."""
        ...

    @property
    def refusal(self) -> str:
        """Text that explains a 401 of transport()."""
        ...

    def transport(self, network: Network) -> httpx.AsyncBaseTransport:
        """Return a transport for one group and one server that authenticates every request.

        Its requests raise what httpx raises, and ExchangeError if the authentication itself fails. A 401 that it
        returns is final: the transport has already retried where a retry could help.
        """
        ...


class Credentials:
    """A username and a password. The password may change while the daemon runs."""

    def __init__(self, user: str, password: Secret) -> None:
        self.user = user
        self._password = password
        self._reloading = trio.Lock()

    @property
    def password(self) -> str:
        return self._password.reveal()

    async def reload(self, refused: str) -> bool:
        """Read the password again. Return whether it differs from the one that the server refused."""
        async with self._reloading:
            if self.password == refused:
                try:
                    # In a thread: the secret's command may be slow, and its file may be on a network file system.
                    await trio.to_thread.run_sync(self._password.renew, abandon_on_cancel=True)
                except SecretError as error:
                    log.warning("auth.secret_unreadable", account=self.user, text=str(error))
        return self.password != refused


def password_refused(user: str) -> str:
    """Return the text for a server that refuses a password without a reason."""
    return (
        f"the server refuses {user}: the password is wrong, or the account is locked, disabled or expired (the "
        "server does not say which)"
    )


def require_https(url: httpx.URL, what: str) -> None:
    """Raise ExchangeError `InsecureUrl` if `what` would be sent in clear over a network."""
    if url.scheme != "https" and not is_loopback(str(url)):
        raise ExchangeError(Failure(code="InsecureUrl", text=f"{url} is not https: it would expose {what}"))


def choose_scheme(offered: list[str], *wanted: str) -> str:
    """Return the first of the `wanted` schemes that the server offers, as spelled in `wanted`.

    Raises ExchangeError `SchemeNotOffered` if the server offers none of them.
    """
    names = {name.lower() for name in offered}
    for name in wanted:
        if name.lower() in names:
            return name
    offer = ", ".join(offered) or "no authentication scheme"
    text = f"the server offers {offer}, but the configuration requires {' or '.join(wanted)}"
    raise ExchangeError(Failure(code="SchemeNotOffered", text=text, status=401))


# A scheme begins a header or follows a comma; a parameter has an equals sign where a scheme has a blank or nothing.
# Quantifiers are possessive, and a parameter's name cannot begin inside another name. Otherwise a header that a
# server chooses could take quadratic time.
_SCHEME = re.compile(r"(?:^|,)\s*+([A-Za-z][A-Za-z0-9-]{0,63}+)(?=\s*+(?:$|,)|\s++[^\s=])")
_PARAMETER = re.compile(
    r"(?<![A-Za-z0-9_-])([A-Za-z0-9_-]++)\s*+=\s*+(?:\"((?:[^\"\\]|\\.)*+)\"|([^\s,\"]++))"
)
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*+(?:\"|\\?$)")
MAX_SCHEMES = 10
"""Schemes of one response that are read. Servers offer three or four."""
MAX_CHALLENGE_LENGTH = 8192
"""Characters of a challenge that are read. The token of a handshake is not limited by it."""


def offered_schemes(headers: httpx.Headers) -> list[str]:
    """Return the names of the schemes in WWW-Authenticate, as the server spells them."""
    found = [name for value in _challenges(headers) for name in _SCHEME.findall(_mask_quoted(value))]
    return list(dict.fromkeys(found))[:MAX_SCHEMES]


def challenge_token(headers: httpx.Headers, scheme: str) -> bytes | None:
    """Return the token that follows the scheme, as in `Negotiate YII…`; None if there is none or it is not base64."""
    for value in headers.get_list("www-authenticate", split_commas=True):
        name, _, token = value.strip().partition(" ")
        if name.lower() == scheme.lower() and token.strip():
            try:
                return b64decode(token.strip(), validate=True)
            except (ValueError, Error):
                return None
    return None


def challenge_parameters(headers: httpx.Headers, scheme: str) -> dict[str, str]:
    """Return the parameters of the scheme's challenge, by their names in lower case."""
    for value in _challenges(headers):
        masked = _mask_quoted(value)
        for start in re.finditer(_SCHEME, masked):
            if start[1].lower() == scheme.lower():
                following = _SCHEME.search(masked, start.end(1))
                own = value[start.end(1) : following.start(1) if following else None]
                return {
                    name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare
                    for name, quoted, bare in _PARAMETER.findall(own)
                }
    return {}


def _challenges(headers: httpx.Headers) -> list[str]:
    return [value[:MAX_CHALLENGE_LENGTH] for value in headers.get_list("www-authenticate")[:MAX_SCHEMES]]


def _mask_quoted(value: str) -> str:
    """Replace the content of quoted strings, at the same offsets. The last quote may be unterminated."""
    return _QUOTED.sub(lambda quoted: '"' + "_" * (len(quoted[0]) - 1), value)
