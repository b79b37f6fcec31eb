"""What the schemes of authentication have in common."""

from __future__ import annotations

from typing import Protocol

import httpx

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
