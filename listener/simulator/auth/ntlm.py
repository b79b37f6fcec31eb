"""The server's end of NTLM, by pyspnego."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import spnego
from spnego.exceptions import SpnegoError

from listener.simulator.auth import ntlmssp
from listener.simulator.auth.accounts import Accounts
from listener.simulator.auth.binding import Binding, Protection
from listener.simulator.auth.connection import ConnectionLogin, Refusal

BROKEN = (SpnegoError, struct.error, ValueError, LookupError, TypeError, StopIteration, ArithmeticError)
"""What pyspnego raises for a token that is malformed or proves nothing."""


class Ntlm:
    """The scheme."""

    def __init__(self, accounts: Accounts, protection: Protection) -> None:
        self._accounts = accounts
        self._protection = protection

    def login(self, certificate: bytes | None) -> ConnectionLogin:
        binding = Binding(self._protection, certificate)
        return ConnectionLogin(self._accounts, {"NTLM": partial(NtlmAcceptor, self._accounts, binding)})


class NtlmAcceptor:
    """One handshake. pyspnego judges the proof; whom to ask for it, the lock and the channel binding are ours.

    pyspnego's own check of channel bindings takes zeros for a match, and knows no "allow".
    """

    mechanism = "ntlm"

    def __init__(self, accounts: Accounts, binding: Binding, protocol: str = "ntlm") -> None:
        self._accounts = accounts
        self._binding = binding
        with _password_file({}):
            self._context = spnego.server(protocol=protocol)
        self.account: str | None = None

    def step(self, token: bytes) -> bytes | None:
        """The answer to the client's next token. Refusal: it proves nothing."""
        try:
            proof = ntlmssp.find(token)
        except ValueError:
            raise Refusal("", "handshake") from None
        account = self._accounts.find(proof.name) if proof else None
        if proof and account is None:
            raise Refusal(proof.name, "password")
        known = {proof.name: self._accounts.passwords[account]} if proof and account else {}
        try:
            with _password_file(known):
                answer = self._context.step(token)
        except BROKEN:
            if account is None:
                raise Refusal("", "handshake") from None
            raise Refusal(account, "password") from None
        if proof and not self._binding.fits(proof.binding):
            raise Refusal(account or "", "binding")
        if self._context.complete:
            self.account = account
        return answer


@contextmanager
def _password_file(passwords: dict[str, str]) -> Iterator[None]:
    """pyspnego's acceptor takes passwords from the file that NTLM_USER_FILE names, and from nowhere else. The file
    and the variable are there while this lasts; the file is never on a disk."""
    with os.fdopen(os.memfd_create("ntlm-users"), "w", encoding="utf-8") as file:
        for name, password in passwords.items():
            domain, _, user = name.rpartition("\\")
            file.write(f"{domain}:{user}:{password}\n")
        file.flush()
        before = os.environ.get("NTLM_USER_FILE")
        os.environ["NTLM_USER_FILE"] = f"/proc/self/fd/{file.fileno()}"
        try:
            yield
        finally:
            if before is None:
                del os.environ["NTLM_USER_FILE"]
            else:
                os.environ["NTLM_USER_FILE"] = before
