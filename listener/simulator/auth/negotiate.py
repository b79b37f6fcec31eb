"""The server's end of Negotiate (SPNEGO, RFC 4178): Kerberos if there is a keytab, else NTLM."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from listener.simulator.auth import ntlmssp
from listener.simulator.auth.accounts import Accounts
from listener.simulator.auth.binding import Binding, Protection
from listener.simulator.auth.connection import Acceptor, ConnectionLogin
from listener.simulator.auth.kerberos import KerberosAcceptor, load_key
from listener.simulator.auth.ntlm import NtlmAcceptor


class Negotiate:
    """The scheme; it offers bare NTLM too, as Exchange does. `keytab` has the key of HTTP/host. OSError: see
    `kerberos.load_key`."""

    def __init__(self, accounts: Accounts, protection: Protection, keytab: Path | None) -> None:
        self._accounts = accounts
        self._protection = protection
        self._key = None if keytab is None else load_key(keytab)

    def login(self, certificate: bytes | None) -> ConnectionLogin:
        binding = Binding(self._protection, certificate)
        offer: dict[str, Callable[[], Acceptor]] = {
            "Negotiate": partial(NegotiateAcceptor, self._accounts, binding, self._key),
            "NTLM": partial(NtlmAcceptor, self._accounts, binding),
        }
        return ConnectionLogin(self._accounts, offer)


class NegotiateAcceptor:
    """One handshake. Without a `key` there is NTLM alone."""

    def __init__(self, accounts: Accounts, binding: Binding, key: Any) -> None:
        self._accounts = accounts
        self._binding = binding
        self._key = key
        self._acceptor: Acceptor | None = None

    @property
    def account(self) -> str | None:
        return self._acceptor.account if self._acceptor else None

    @property
    def mechanism(self) -> str:
        return self._acceptor.mechanism if self._acceptor else ""

    def step(self, token: bytes) -> bytes | None:
        if self._acceptor is None:
            if self._key is None or ntlmssp.SIGNATURE in token:
                self._acceptor = NtlmAcceptor(self._accounts, self._binding, "negotiate")
            else:
                self._acceptor = KerberosAcceptor(self._accounts, self._binding, self._key)
        return self._acceptor.step(token)
