"""Negotiate (RFC 4559): Kerberos if a ticket is available, otherwise NTLM if a password is configured.

Kerberos needs the extra `kerberos` (pyspnego's gssapi and krb5). Without a password, the ticket comes from the
credentials cache or a keytab, as configured by krb5.conf, $KRB5CCNAME and $KRB5_CLIENT_KTNAME. The ticket is for the
host of the URL.

If the domain reports a locked account, a wrong password or a clock that is off, NTLM is not tried: it could not
succeed, and would count as one more failed logon.
"""

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

from listener.ews.codes import ExchangeError, Failure
from listener.exchange.auth.handshake import Handshake, HandshakeTransport
from listener.exchange.auth.ntlm import (
    SpnegoHandshake,
    extended_protection_cause,
    gss_bindings,
    ntlm_handshake,
    run_in_thread,
)
from listener.exchange.auth.scheme import Credentials, choose_scheme
from listener.exchange.network import Network

KERBEROS_ERRORS: tuple[type[Exception], ...] = (SpnegoError, OSError, ValueError)
try:
    from gssapi.exceptions import GSSError
    from krb5 import Krb5Error
except ImportError:  # the extra is not installed
    pass
else:
    KERBEROS_ERRORS += (GSSError, Krb5Error)

log = structlog.get_logger()

T = TypeVar("T")

KERBEROS_LEGS = 1
KERBEROS_RETRY = 60.0
"""Seconds until Kerberos is tried again after no ticket was available and NTLM was used instead."""


class Negotiate:
    """Authenticate with Kerberos or NTLM.

    With `credentials` None, Kerberos uses its own credentials cache or keytab. `principal` then selects the
    principal; None selects the default. `spn` is SERVICE/HOST, where it does not follow from the URL.
    """

    def __init__(
        self, credentials: Credentials | None, principal: str | None = None, spn: str | None = None
    ) -> None:
        self.credentials = credentials
        self._principal = principal if credentials is None else credentials.user
        self._spn = spn
        self._tickets: dict[tuple[str, str], Ticket] = {}  # by service and host
        self._no_kerberos_until = -float("inf")

    @property
    def account(self) -> str:
        return self._principal or "the default principal of Kerberos"

    @property
    def password(self) -> str | None:
        return None if self.credentials is None else self.credentials.password

    @property
    def refusal(self) -> str:
        return f"the server refuses {self.account}"

    def transport(self, network: Network) -> httpx.AsyncBaseTransport:
        return HandshakeTransport(network, self)

    async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> Handshake:
        can_use_ntlm = self.credentials is not None
        header = choose_scheme(offered, "Negotiate", *(["NTLM"] if can_use_ntlm else []))
        if header == "Negotiate" and trio.current_time() >= self._no_kerberos_until:
            result = await self._kerberos_handshake(url, binding)
            if isinstance(result, SpnegoHandshake):
                return result
            if not can_use_ntlm:
                raise ExchangeError(Failure(code="KerberosFailed", text=f"{self.account}: {result}"))
            self._no_kerberos_until = trio.current_time() + KERBEROS_RETRY
            log.debug("auth.kerberos_unavailable", account=self.account, text=result)
        assert self.credentials is not None
        return ntlm_handshake(self.credentials, url, offered)

    async def _kerberos_handshake(self, url: httpx.URL, binding: bytes | None) -> SpnegoHandshake | str:
        """Return a handshake with its first token, or the reason why there is none.

        Raises ExchangeError if no other mechanism could succeed either.
        """
        service, _, host = (self._spn or f"HTTP/{url.host}").partition("/")

        def describe_refusal(binding: bytes | None, error: SpnegoError | None) -> Failure:
            if error is not None and is_clock_skew(error):
                return Failure(code="ClockSkew", status=401, text=SERVER_CLOCK_SKEW)
            return Failure(
                code="HandshakeRefused",
                status=401,
                text=f"the server refuses the Kerberos ticket of {self.account} for {service}/{host}: the SPN is "
                "registered for another account than the one that the server runs as, or for several accounts "
                "(setspn -Q, setspn -X); or Extended Protection rejects the handshake: "
                f"{extended_protection_cause(binding)}",
            )

        try:
            context, token = await run_in_thread(partial(self._first_token, service, host, binding))
        except ImportError:
            return "Kerberos is not installed: pip install 'ews-listener[kerberos]'"
        except KERBEROS_ERRORS as error:
            fatal = kerberos_failure(error, self.account)
            if fatal is not None:
                raise ExchangeError(fatal) from error
            return _error_text(error)
        return SpnegoHandshake(context, "Negotiate", KERBEROS_LEGS, describe_refusal).with_first_token(token)

    def _first_token(self, service: str, host: str, binding: bytes | None) -> tuple[Any, bytes | None]:
        """Return a context and its first token. Runs in a thread: it asks the KDC unless a ticket is cached."""
        password = None if self.credentials is None else self.credentials.password
        create = partial(
            spnego.client, self._principal, password, hostname=host, service=service, protocol="kerberos"
        )
        ticket = self._tickets.setdefault((service, host), Ticket())
        return ticket.use(password, create, partial(_first_step, binding=binding))


def _first_step(context: Any, binding: bytes | None) -> tuple[Any, bytes | None]:
    return context, context.step(None, channel_bindings=gss_bindings(binding))


class Ticket:
    """The ticket for one service, in the context that acquired it. Several threads use it.

    One thread at a time asks the KDC. If the KDC refuses the password, the waiting threads must not send it again.
    """

    def __init__(self) -> None:
        self._cached: tuple[str | None, Any] | None = (
            None  # the password that acquired the ticket, and its context
        )
        self._lock = Lock()
        self._attempts = 0  # attempts to get a ticket that have ended
        self._error: Exception | None = None  # of the latest attempt

    def use(self, password: str | None, create: Callable[[], Any], step: Callable[[Any], T]) -> T:
        """Return `step` of a context with the ticket: a copy of the cached context, or a new one of `create`.

        Blocks. Raises what `create` and `step` raise, also what they have just raised in another thread for which
        this one has waited.
        """
        attempts, cached = self._attempts, self._cached
        if cached is not None and cached[0] == password:
            with suppress(*KERBEROS_ERRORS):  # the ticket has expired: get a new one below
                return step(cached[1].new_context())
        with self._lock:
            if self._attempts != attempts:
                if self._error is not None:
                    raise self._error
                if self._cached is not None and self._cached[0] == password:
                    return step(self._cached[1].new_context())
            self._cached = self._error = None
            try:
                context = create()
                result = step(context)
            except Exception as error:
                self._error = error
                raise
            finally:
                self._attempts += 1
            self._cached = password, context
            return result


# --- errors of Kerberos: the codes are those of MIT's krb5.h and of RFC 4120 section 7.5.9

_BASE = -1765328384  # ERROR_TABLE_BASE_krb5: krb5.h adds the codes of RFC 4120 to it

FATAL_ERRORS: dict[int, tuple[str, str]] = {
    6: ("AccountUnknown", "the domain does not know the account {account}"),
    18: ("AccountLocked", "the account {account} is locked or disabled"),
    23: ("PasswordExpired", "the password of {account} has expired"),
    24: ("PasswordRefused", "the password of {account} is wrong"),
    31: ("PasswordRefused", "the password or the keytab of {account} is wrong"),
    37: ("ClockSkew", "the clocks of this machine and of the domain differ by more than 5 minutes"),
}
"""By the code of RFC 4120: the failure's code and text. No other mechanism is tried after these."""

SERVER_CLOCK_SKEW = "the clocks of the server and of the domain differ by more than 5 minutes"
_NOT_YET_VALID, _SKEW = 33, 37


def is_clock_skew(error: BaseException) -> bool:
    """Return whether a server has refused a ticket because of the time."""
    return any(code - _BASE in (_NOT_YET_VALID, _SKEW) for code in _error_codes(error))


def kerberos_failure(error: BaseException, account: str) -> Failure | None:
    """Return the failure of a fatal error; None if another mechanism may succeed."""
    for code in _error_codes(error):
        if found := FATAL_ERRORS.get(code - _BASE):
            return Failure(code=found[0], text=found[1].format(account=account))
    return None


def _error_text(error: BaseException) -> str:
    """Return the text of the library's error, without pyspnego's wrapping."""
    return str(getattr(error, "base_error", None) or error)


def _error_codes(error: BaseException) -> Iterator[int]:
    """Yield the minor codes of the error and of its causes, as signed numbers of 32 bits."""
    current: BaseException | None = error
    while current is not None:
        for source in (current, getattr(current, "base_error", None)):
            for name in ("min_code", "err_code"):
                code = getattr(source, name, None)
                if isinstance(code, int):
                    yield code - (1 << 32) if code >= 1 << 31 else code
        current = current.__cause__ or current.__context__
