"""Who is asking: one class a scheme, without sockets.

A `Scheme` makes a `Login` for each connection, since some schemes authenticate a connection and not a request. A
login is asked about every request, in order, and answers `Admitted` or `Denied`.

    passwords.py      accounts, lockout, Basic
    windows.py        NTLM, Negotiate, Kerberos, channel binding
    oauth.py          Entra ID and bearer tokens
    authenticator.py  the scheme that the settings select, and statistics
"""

from typing import NamedTuple, Protocol

Headers = tuple[tuple[str, str], ...]


class Admitted(NamedTuple):
    """The account that a request is made by. `mechanism` is what proved it: `basic`, `ntlm`, `kerberos` or `oauth`;
    `headers` go with the reply. An `app_only` account is an application, which can do nothing as itself. `proved`
    is false if an earlier request on this connection has brought the proof."""

    account: str
    mechanism: str
    headers: Headers = ()
    app_only: bool = False
    proved: bool = True


class Denied(NamedTuple):
    """401 with these headers. `refused` is whose credentials were refused, None if none came, or not all of them
    yet; `why` is for the statistics: `password`, `locked`, `binding`, `handshake`, `ticket`, `token` or `claims`."""

    headers: Headers
    refused: str | None = None
    reason: str = ""


class Login(Protocol):
    """The state of authentication of one connection."""

    def check(self, authorization: str | None, now: float) -> Admitted | Denied:
        """Who makes a request with this Authorization header; `now` in Unix seconds."""
        ...


class Scheme(Protocol):
    """A way to authenticate, for all connections."""

    def login(self, certificate: bytes | None) -> Login:
        """A new connection's login. `certificate` (DER) is the one that it has been shown, None without TLS."""
        ...


def challenges(*values: str) -> Headers:
    """One WWW-Authenticate header for each."""
    return tuple(("WWW-Authenticate", value) for value in values)
