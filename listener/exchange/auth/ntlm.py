"""NTLM (MS-NLMP), in headers of its own or, where the server offers nothing else, in Negotiate's.

Handshakes by pyspnego. Its steps may ask DNS or a KDC, so they are made in threads."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import httpx
import spnego
import trio
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.ews.xml import excerpt
from listener.exchange.auth.handshake import Handshake, HandshakeTransport
from listener.exchange.auth.scheme import Credentials, choose, refused_password
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


T = TypeVar("T")
Refusal = Callable[[bytes | None, SpnegoError | None], Failure]

# What pyspnego raises for a token that it cannot read.
UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    struct.error,
)

# A KDC that does not answer must not take the threads of others.
_threads = trio.CapacityLimiter(8)


async def in_thread(work: Callable[[], T]) -> T:
    """Runs it in a thread; whoever is cancelled meanwhile does not wait for its end."""
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_threads)


class SpnegoHandshake:
    """A handshake by one context of pyspnego. `legs` tokens of ours prove who we are. `refusal` makes a failure of
    the channel binding, and of what the mechanism made of the server's last words."""

    def __init__(self, context: Any, header: str, legs: int, refusal: Refusal) -> None:
        self.header = header
        self._context = context
        self._legs = legs
        self._refusal = refusal
        self._made = 0
        self._first: bytes | None = None
        self._told: SpnegoError | None = None

    @property
    def shown(self) -> bool:
        return self._made >= self._legs

    @property
    def one_leg(self) -> bool:
        return self._legs == 1

    def prepared(self, token: bytes | None) -> SpnegoHandshake:
        """With its first token, which was made already."""
        self._first = token
        return self

    async def step(self, received: bytes | None, binding: bytes | None) -> bytes | None:
        if received is None and self._first is not None:
            token, self._first = self._first, None
        else:
            try:
                token = await in_thread(
                    partial(self._context.step, received, channel_bindings=bindings(binding))
                )
            except SpnegoError as error:
                if self.shown:  # what came is a refusal in the mechanism's own words
                    self._told = error
                    return None
                raise ExchangeError(Failure(code="HandshakeBroken", text=excerpt(error.message))) from error
            except UNREADABLE as error:
                text = f"the server's {self.header} token cannot be read: {excerpt(str(error))}"
                raise ExchangeError(Failure(code="HandshakeBroken", text=text)) from error
        if token is not None:
            self._made += 1
        return token

    def refused(self, binding: bytes | None) -> Failure:
        return self._refusal(binding, self._told)


def bindings(binding: bytes | None) -> GssChannelBindings | None:
    """In the form of pyspnego."""
    return None if binding is None else GssChannelBindings(application_data=binding)
