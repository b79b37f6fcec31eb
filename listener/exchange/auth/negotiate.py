"""Negotiate (RFC 4559): Kerberos where there is a ticket to be had, else NTLM if there is a password.

Kerberos needs the extra `kerberos` (pyspnego's gssapi and krb5). Without a password the ticket is taken from the
cache or got by a keytab, as krb5.conf, $KRB5CCNAME and $KRB5_CLIENT_KTNAME tell. It is for the host of the URL.

Where the domain says that the account is locked, its password wrong or our clock off, NTLM is not tried: it could not
succeed, and would be one more bad try.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx
import spnego
import structlog
import trio
from spnego.exceptions import SpnegoError

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.exchange.auth.credentials import Credentials
from listener.exchange.auth.handshake import Handshake, HandshakeTransport
from listener.exchange.auth.kerberos import ERRORS, SERVERS_CLOCK, clocks_differ, kerberos_failure, reason
from listener.exchange.auth.ntlm import ntlm_handshake, protection
from listener.exchange.auth.scheme import choose
from listener.exchange.auth.spnego import SpnegoHandshake, bindings, in_thread
from listener.exchange.auth.tickets import Ticket
from listener.exchange.network import Network

log = structlog.get_logger()

KERBEROS_LEGS = 1
WITHOUT_KERBEROS = 60.0
"""Seconds for which Kerberos is left alone when there was no ticket to be had, and NTLM can do."""


class Negotiate:
    """`credentials` are None where Kerberos finds its own; `principal` is then whom to be, None for the default.
    `spn` is SERVICE/HOST where it does not follow from the URL."""

    def __init__(
        self, credentials: Credentials | None, principal: str | None = None, spn: str | None = None
    ) -> None:
        self.credentials = credentials
        self._principal = principal if credentials is None else credentials.user
        self._spn = spn
        self._tickets: dict[tuple[str, str], Ticket] = {}
        self._without_until = -float("inf")

    @property
    def account(self) -> str:
        return self._principal or "the default principal of Kerberos"

    @property
    def password(self) -> str | None:
        return None if self.credentials is None else self.credentials.password

    @property
    def refusal(self) -> str:
        return f"the server refuses {self.account}"

    def over(self, network: Network) -> httpx.AsyncBaseTransport:
        return HandshakeTransport(network, self)

    async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> Handshake:
        fall_back = self.credentials is not None
        header = choose(offered, "Negotiate", *(["NTLM"] if fall_back else []))
        if header == "Negotiate" and trio.current_time() >= self._without_until:
            why = await self._kerberos(url, binding)
            if isinstance(why, SpnegoHandshake):
                return why
            if not fall_back:
                raise ExchangeError(Failure(code="KerberosFailed", text=f"{self.account}: {why}"))
            self._without_until = trio.current_time() + WITHOUT_KERBEROS
            log.debug("auth.kerberos_unavailable", account=self.account, text=why)
        assert self.credentials is not None
        return ntlm_handshake(self.credentials, url, offered)

    async def _kerberos(self, url: httpx.URL, binding: bytes | None) -> SpnegoHandshake | str:
        """A handshake with its first token made, or why there is none. ExchangeError: there cannot be any."""
        service, _, host = (self._spn or f"HTTP/{url.host}").partition("/")

        def refusal(binding: bytes | None, told: SpnegoError | None) -> Failure:
            if told is not None and clocks_differ(told):
                return Failure(code="ClockSkew", status=401, text=SERVERS_CLOCK)
            return Failure(
                code="HandshakeRefused",
                status=401,
                text=f"the server refuses the Kerberos ticket of {self.account} for {service}/{host}: the SPN "
                "belongs to another account than the one the server runs with, or to several (setspn -Q, setspn -X); "
                f"or Extended Protection is in the way: {protection(binding)}",
            )

        try:
            context, token = await in_thread(partial(self._first_token, service, host, binding))
        except ImportError:
            return "Kerberos is not installed: pip install 'ews-listener[kerberos]'"
        except ERRORS as error:
            hopeless = kerberos_failure(error, self.account)
            if hopeless is not None:
                raise ExchangeError(hopeless) from error
            return reason(error)
        return SpnegoHandshake(context, "Negotiate", KERBEROS_LEGS, refusal).prepared(token)

    def _first_token(self, service: str, host: str, binding: bytes | None) -> tuple[Any, bytes | None]:
        """In a thread: it asks the KDC, unless there is a ticket from an earlier time."""
        password = None if self.credentials is None else self.credentials.password
        make = partial(
            spnego.client, self._principal, password, hostname=host, service=service, protocol="kerberos"
        )
        ticket = self._tickets.setdefault((service, host), Ticket())
        return ticket.use(password, make, partial(_step, binding=binding))


def _step(context: Any, binding: bytes | None) -> tuple[Any, bytes | None]:
    return context, context.step(None, channel_bindings=bindings(binding))
