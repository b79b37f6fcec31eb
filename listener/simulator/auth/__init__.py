"""Authentication schemes, without sockets.

A `Scheme` makes a `Login` for each connection, because some schemes authenticate a connection instead of a request. A
login checks every request in order and returns `Admitted` or `Denied`.

    passwords.py      accounts, lockout, Basic
    windows.py        NTLM, Negotiate, Kerberos, channel binding
    oauth.py          Entra ID and bearer tokens
    authenticator.py  the scheme that the settings select, and statistics
"""

from typing import NamedTuple, Protocol

Headers = tuple[tuple[str, str], ...]


class Admitted(NamedTuple):
    """The authenticated account of a request.

    `mechanism` is `basic`, `ntlm`, `kerberos` or `oauth`; `headers` go with the reply. An `app_only` account
    is an application without a user. `proved` is false if an earlier request on this connection had the
    credentials.
    """

    account: str
    mechanism: str
    headers: Headers = ()
    app_only: bool = False
    proved: bool = True


class Denied(NamedTuple):
    """A 401 with these headers.

    `refused` is the account whose credentials were refused, None if there were none or the handshake is
    incomplete. `reason` is for statistics: `password`, `locked`, `binding`, `handshake`, `ticket`, `token` or
    `claims`.
    """

    headers: Headers
    refused: str | None = None
    reason: str = ""


class Login(Protocol):
    """The authentication state of one connection."""

    def check(self, authorization: str | None, now: float) -> Admitted | Denied:
        """Authenticate a request with this Authorization header. `now` is in Unix seconds."""
        ...


class Scheme(Protocol):
    """An authentication scheme, for all connections."""

    def login(self, certificate: bytes | None) -> Login:
        """Return the login of a new connection. `certificate` (DER) is the one that it was shown, None
        without TLS."""
        ...


def challenges(*values: str) -> Headers:
    """Return one WWW-Authenticate header per value."""
    return tuple(("WWW-Authenticate", value) for value in values)
