"""The server's end of Negotiate (SPNEGO, RFC 4178): Kerberos if there is a keytab, else NTLM.

Kerberos is left to the system's libkrb5, its SPNEGO included, so that it is not pyspnego on both sides.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from listener.simulator.auth import ntlmssp
from listener.simulator.auth.accounts import Accounts
from listener.simulator.auth.binding import Binding, Protection
from listener.simulator.auth.connection import Acceptor, ConnectionLogin, Refusal
from listener.simulator.auth.ntlm import NtlmAcceptor

if TYPE_CHECKING:
    import gssapi

_CHANNEL_BOUND = 2048
"""GSS_C_CHANNEL_BOUND_FLAG: the initiator has sent the acceptor's bindings."""


class Negotiate:
    """The scheme; it offers bare NTLM too, as Exchange does."""

    def __init__(self, accounts: Accounts, protection: Protection, keytab: Path | None) -> None:
        self._accounts = accounts
        self._protection = protection
        self._keytab = keytab

    def login(self, certificate: bytes | None) -> ConnectionLogin:
        binding = Binding(self._protection, certificate)
        offer: dict[str, Callable[[], Acceptor]] = {
            "Negotiate": partial(NegotiateAcceptor, self._accounts, binding, self._keytab),
            "NTLM": partial(NtlmAcceptor, self._accounts, binding),
        }
        return ConnectionLogin(self._accounts, offer)


class NegotiateAcceptor:
    """One handshake. `keytab` has the key of HTTP/host; without it there is NTLM alone."""

    def __init__(self, accounts: Accounts, binding: Binding, keytab: Path | None) -> None:
        self._accounts = accounts
        self._binding = binding
        self._keytab = keytab
        self._acceptor: Acceptor | None = None

    @property
    def account(self) -> str | None:
        return self._acceptor.account if self._acceptor else None

    @property
    def mechanism(self) -> str:
        return self._acceptor.mechanism if self._acceptor else ""

    def step(self, token: bytes) -> bytes | None:
        if self._acceptor is None:
            if self._keytab is None or ntlmssp.SIGNATURE in token:
                self._acceptor = NtlmAcceptor(self._accounts, self._binding, "negotiate")
            else:
                self._acceptor = KerberosAcceptor(self._accounts, self._binding, self._keytab)
        return self._acceptor.step(token)


class KerberosAcceptor:
    """One handshake; it takes one leg."""

    mechanism = "kerberos"

    def __init__(self, accounts: Accounts, binding: Binding, keytab: Path) -> None:
        self._accounts = accounts
        self._binding = binding
        self._keytab = keytab
        self._context: gssapi.SecurityContext | None = None
        self.account: str | None = None

    def step(self, token: bytes) -> bytes | None:
        import gssapi

        bindings = None
        if self._binding.data is not None:
            bindings = gssapi.raw.ChannelBindings(application_data=self._binding.data)
        answer: bytes | None = None
        try:
            if self._context is None:
                key = gssapi.Credentials(usage="accept", store={"keytab": str(self._keytab)})
                self._context = gssapi.SecurityContext(creds=key, usage="accept", channel_bindings=bindings)
            answer = self._context.step(token)
            complete = self._context.complete  # an error that comes with a token is raised here, not by step
        except gssapi.exceptions.BadChannelBindingsError:
            raise Refusal("", "binding", answer) from None
        except gssapi.exceptions.GSSError:
            raise Refusal("", "ticket", answer) from None
        if complete:
            name = str(self._context.initiator_name)
            account = self._accounts.find(name)
            if account is None:
                raise Refusal(name, "ticket")
            if self._binding.required and not int(self._context.actual_flags) & _CHANNEL_BOUND:
                raise Refusal(account, "binding")
            self.account = account
        return answer
