"""NTLM (MS-NLMP), in headers of its own or, where the server offers nothing else, in Negotiate's."""

from __future__ import annotations

import httpx
import spnego
from spnego.exceptions import SpnegoError

from listener.ews.codes import Failure
from listener.exchange.auth.credentials import Credentials
from listener.exchange.auth.handshake import Handshake, HandshakeTransport
from listener.exchange.auth.scheme import choose, refused_password
from listener.exchange.auth.spnego import SpnegoHandshake
from listener.exchange.network import Network

NTLM_LEGS = 2


class Ntlm:
    """User and password, proved by challenge and response for each connection."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials

    @property
    def account(self) -> str:
        return self.credentials.user

    @property
    def password(self) -> str:
        return self.credentials.password

    @property
    def refusal(self) -> str:
        return refused_password(self.account)

    def over(self, network: Network) -> httpx.AsyncBaseTransport:
        return HandshakeTransport(network, self)

    async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> Handshake:
        return ntlm_handshake(self.credentials, url, offered)


def ntlm_handshake(credentials: Credentials, url: httpx.URL, offered: list[str]) -> SpnegoHandshake:
    """Raises ExchangeError if the server offers neither NTLM nor Negotiate."""
    header = choose(offered, "NTLM", "Negotiate")
    # Bare in Negotiate, too: SPNEGO has nothing to negotiate here.
    context = spnego.client(
        credentials.user, credentials.password, hostname=url.host, service="HTTP", protocol="ntlm"
    )

    def refusal(binding: bytes | None, told: SpnegoError | None) -> Failure:
        return Failure(
            code="HandshakeRefused",
            status=401,
            text=f"{refused_password(credentials.user)}; or, after this whole NTLM handshake, the password is right "
            f"and Extended Protection is in the way: {protection(binding)}",
        )

    return SpnegoHandshake(context, header, NTLM_LEGS, refusal)


def protection(binding: bytes | None) -> str:
    """How Extended Protection can be in the way of somebody with good credentials."""
    if binding is None:
        return "the server asks for the channel binding of a TLS connection, and the URL is http"
    return (
        "a proxy or load balancer before the server ends TLS with a certificate that is not the server's own, so "
        "that the channel binding differs"
    )
