"""NTLM (MS-NLMP), and handshakes by pyspnego, which NTLM and Negotiate share.

NTLM runs under its own scheme name, or under Negotiate where the server offers nothing else.
"""

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

from listener.ews.codes import ExchangeError, Failure
from listener.ews.xml import excerpt
from listener.exchange.auth.handshake import Handshake, HandshakeTransport
from listener.exchange.auth.scheme import Credentials, choose_scheme, password_refused
from listener.exchange.network import Network

T = TypeVar("T")
DescribeRefusal = Callable[[bytes | None, SpnegoError | None], Failure]
"""Makes the failure of a refused handshake, from the channel binding and the mechanism's own error."""

NTLM_LEGS = 2

# What pyspnego raises for a token that it cannot parse.
UNREADABLE_TOKEN = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    struct.error,
)

# A limiter of its own: a KDC that does not answer must not block the threads of other work.
_threads = trio.CapacityLimiter(8)


class Ntlm:
    """Authenticate each connection with username and password, by challenge and response."""

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
        return password_refused(self.account)

    def transport(self, network: Network) -> httpx.AsyncBaseTransport:
        return HandshakeTransport(network, self)

    async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> Handshake:
        return ntlm_handshake(self.credentials, url, offered)


def ntlm_handshake(credentials: Credentials, url: httpx.URL, offered: list[str]) -> SpnegoHandshake:
    """Return a new NTLM handshake. Raises ExchangeError if the server offers neither NTLM nor Negotiate."""
    header = choose_scheme(offered, "NTLM", "Negotiate")
    # Raw NTLM tokens in Negotiate, too: with one mechanism, SPNEGO has nothing to negotiate.
    context = spnego.client(
        credentials.user, credentials.password, hostname=url.host, service="HTTP", protocol="ntlm"
    )

    def describe_refusal(binding: bytes | None, error: SpnegoError | None) -> Failure:
        return Failure(
            code="HandshakeRefused",
            status=401,
            text=f"{password_refused(credentials.user)}; or the password is right, and Extended Protection rejects "
            f"the handshake: {extended_protection_cause(binding)}",
        )

    return SpnegoHandshake(context, header, NTLM_LEGS, describe_refusal)


def extended_protection_cause(binding: bytes | None) -> str:
    """Return why Extended Protection may reject a handshake with valid credentials."""
    if binding is None:
        return "the server requires the channel binding of a TLS connection, but the URL is http"
    return (
        "a proxy or load balancer terminates TLS with a certificate other than the server's own, so that the channel "
        "binding differs"
    )


class SpnegoHandshake:
    """A handshake by one context of pyspnego. The client proves its identity with its first `legs` tokens."""

    def __init__(self, context: Any, header: str, legs: int, describe_refusal: DescribeRefusal) -> None:
        self.header = header
        self._context = context
        self._legs = legs
        self._describe_refusal = describe_refusal
        self._tokens_made = 0
        self._first_token: bytes | None = None
        self._error: SpnegoError | None = None

    @property
    def credentials_sent(self) -> bool:
        return self._tokens_made >= self._legs

    @property
    def one_leg(self) -> bool:
        return self._legs == 1

    def with_first_token(self, token: bytes | None) -> SpnegoHandshake:
        """Set the first token, which the context has already made, and return the handshake."""
        self._first_token = token
        return self

    async def step(self, received: bytes | None, binding: bytes | None) -> bytes | None:
        if received is None and self._first_token is not None:
            token, self._first_token = self._first_token, None
        else:
            try:
                token = await run_in_thread(
                    partial(self._context.step, received, channel_bindings=gss_bindings(binding))
                )
            except SpnegoError as error:
                if self.credentials_sent:  # the server's token is a refusal in the mechanism's own format
                    self._error = error
                    return None
                raise ExchangeError(Failure(code="HandshakeBroken", text=excerpt(error.message))) from error
            except UNREADABLE_TOKEN as error:
                text = f"the server's {self.header} token cannot be read: {excerpt(str(error))}"
                raise ExchangeError(Failure(code="HandshakeBroken", text=text)) from error
        if token is not None:
            self._tokens_made += 1
        return token

    def refusal(self, binding: bytes | None) -> Failure:
        return self._describe_refusal(binding, self._error)


def gss_bindings(binding: bytes | None) -> GssChannelBindings | None:
    """Return the channel binding in pyspnego's form."""
    return None if binding is None else GssChannelBindings(application_data=binding)


async def run_in_thread(work: Callable[[], T]) -> T:
    """Run a step of pyspnego in a thread: it may ask DNS or a KDC. Cancellation does not wait for its end."""
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_threads)
