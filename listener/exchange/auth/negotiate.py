"""Negotiate (RFC 4559): Kerberos where there is a ticket to be had, else NTLM if there is a password.

Kerberos needs the extra `kerberos` (pyspnego's gssapi and krb5). Without a password the ticket is taken from the
cache or got by a keytab, as krb5.conf, $KRB5CCNAME and $KRB5_CLIENT_KTNAME tell. It is for the host of the URL.

Where the domain says that the account is locked, its password wrong or our clock off, NTLM is not tried: it could not
succeed, and would be one more bad try.


What Kerberos says when it fails. The codes are those of MIT's krb5.h and of RFC 4120 section 7.5.9.

Kerberos tickets that several threads use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import httpx
import spnego
import structlog
import trio
from spnego.exceptions import SpnegoError

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.exchange.auth.handshake import Handshake, HandshakeTransport
from listener.exchange.auth.ntlm import SpnegoHandshake, bindings, in_thread, ntlm_handshake, protection
from listener.exchange.auth.scheme import Credentials, choose
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


ERRORS: tuple[type[Exception], ...] = (SpnegoError, OSError, ValueError)
try:
    from gssapi.exceptions import GSSError
    from krb5 import Krb5Error
except ImportError:  # the extra is not installed
    pass
else:
    ERRORS += (GSSError, Krb5Error)

_BASE = -1765328384  # ERROR_TABLE_BASE_krb5: the codes of RFC 4120 count from here

HOPELESS: dict[int, tuple[str, str]] = {
    6: ("AccountUnknown", "the domain knows no account {account}"),
    18: ("AccountLocked", "the account {account} is locked or disabled"),
    23: ("PasswordExpired", "the password of {account} has expired"),
    24: ("PasswordRefused", "the password of {account} is wrong"),
    31: ("PasswordRefused", "the password or the keytab of {account} is wrong"),
    37: ("ClockSkew", "the clock of this machine and that of the domain are more than 5 minutes apart"),
}
"""By the code of the protocol: ours, and what it means. Nothing else is tried after these."""


SERVERS_CLOCK = "the clock of the server and that of the domain are more than 5 minutes apart"
_NOT_YET_VALID, _SKEW = 33, 37


def clocks_differ(error: BaseException) -> bool:
    """Whether a server has refused a ticket because of the time."""
    return any(code - _BASE in (_NOT_YET_VALID, _SKEW) for code in _codes(error))


def kerberos_failure(error: BaseException, account: str) -> Failure | None:
    """What is known of the error, None where another mechanism may do better."""
    for code in _codes(error):
        if told := HOPELESS.get(code - _BASE):
            return Failure(code=told[0], text=told[1].format(account=account))
    return None


def reason(error: BaseException) -> str:
    """The words of the library, without its own wrapping."""
    return str(getattr(error, "base_error", None) or error)


def _codes(error: BaseException) -> Iterator[int]:
    """The minor codes of the error and of what it came from, as signed numbers of 32 bits."""
    seen: BaseException | None = error
    while seen is not None:
        for source in (seen, getattr(seen, "base_error", None)):
            for name in ("min_code", "err_code"):
                code = getattr(source, name, None)
                if isinstance(code, int):
                    yield code - (1 << 32) if code >= 1 << 31 else code
        seen = seen.__cause__ or seen.__context__


T = TypeVar("T")


class Ticket:
    """The ticket for one service, in the context that got it. One thread at a time asks the KDC: where that refuses
    the password, the others must not send it once more each."""

    def __init__(self) -> None:
        self._held: tuple[str | None, Any] | None = None  # with the password that it was got by
        self._asking = Lock()
        self._told = 0  # answers of the KDC
        self._refused: Exception | None = None

    def use(self, password: str | None, make: Callable[[], Any], step: Callable[[Any], T]) -> T:
        """What `step` makes of a context with the ticket: of a copy of the one held, else of one that `make` makes.

        Blocks. Raises as they do, and what they have just raised in another thread that asked with the same aim.
        """
        told, held = self._told, self._held
        if held is not None and held[0] == password:
            with suppress(*ERRORS):  # the ticket has ended: a new one is got
                return step(held[1].new_context())
        with self._asking:
            if self._told != told:
                if self._refused is not None:
                    raise self._refused
                if self._held is not None and self._held[0] == password:
                    return step(self._held[1].new_context())
            self._held = self._refused = None
            try:
                context = make()
                made = step(context)
            except Exception as error:
                self._refused = error
                raise
            finally:
                self._told += 1
            self._held = password, context
            return made
