"""Windows authentication: NTLM, Negotiate and Kerberos, bound to a connection as in IIS.

- Each leg of a handshake is a request, and each but the last gets 401. A request without the next leg breaks the
  handshake: a leg that follows it is refused.
- NTLM authenticates the connection; later requests need no header. A new handshake ends that.
- Kerberos authenticates each request ("Windows Authentication <windowsAuthentication>", learn.microsoft.com:
  authPersistNonNTLM is false by default).

Extended Protection binds credentials to one TLS channel: RFC 5929 section 4 (`tls-server-end-point`), RFC 2744
section 3.11 and MS-NLMP 2.2.2.1 (MsvAvChannelBindings). "Configure Windows Extended Protection in Exchange Server"
(learn.microsoft.com) says who must send a binding.
"""

import hashlib
import os
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import spnego
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from spnego.exceptions import SpnegoError

from listener.simulator.auth import Admitted, Denied, Headers, challenges
from listener.simulator.auth.passwords import Accounts


class InvalidCredentials(Exception):  # noqa: N818
    """The credentials of `user` are invalid. `reason` as in Denied. `token` is an error token for the client,
    or None."""

    def __init__(self, user: str, reason: str, token: bytes | None = None) -> None:
        super().__init__(reason)
        self.user = user
        self.reason = reason
        self.token = token


class Acceptor(Protocol):
    """The server side of one handshake. `account` is None until it is authenticated."""

    @property
    def account(self) -> str | None: ...

    @property
    def mechanism(self) -> str: ...

    def step(self, token: bytes) -> bytes | None:
        """Return the answer to the client's next token. Raises InvalidCredentials."""
        ...


class ConnectionLogin:
    """The login of one connection. `schemes` are the offered ones by name, in order."""

    def __init__(self, accounts: Accounts, schemes: Mapping[str, Callable[[], Acceptor]]) -> None:
        self._accounts = accounts
        self._schemes = {name.lower(): (name, new_acceptor) for name, new_acceptor in schemes.items()}
        self._offer = challenges(*schemes)
        self._handshake: tuple[str, Acceptor] | None = None
        self._admitted: Admitted | None = None

    def check(self, authorization: str | None, now: float) -> Admitted | Denied:
        handshake, self._handshake = self._handshake, None
        if authorization is None:
            return self._admitted or Denied(self._offer)
        self._admitted = None
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() not in self._schemes:
            return Denied(self._offer)
        name, new_acceptor = self._schemes[scheme.lower()]
        try:
            token = b64decode(credentials, validate=True)
        except ValueError:
            return Denied(self._offer, refused="", reason="handshake")
        acceptor = handshake[1] if handshake and handshake[0] == name else new_acceptor()
        try:
            answer = acceptor.step(token)
        except InvalidCredentials as refusal:
            account = self._accounts.find(refusal.user)
            if account and refusal.reason == "password":
                self._accounts.refuse(account)
            return Denied(
                _token_headers(name, refusal.token) or self._offer, account or refusal.user, refusal.reason
            )
        token_headers = _token_headers(name, answer)
        if acceptor.account is None:
            self._handshake = (name, acceptor)
            return Denied(token_headers)
        return self._admit(acceptor.account, acceptor.mechanism, token_headers)

    def _admit(self, account: str, mechanism: str, token_headers: Headers) -> Admitted | Denied:
        if self._accounts.is_locked(account):
            self._accounts.refuse(account)
            return Denied(self._offer, account, "locked")
        self._accounts.admit(account)
        if mechanism == "ntlm":
            self._admitted = Admitted(account, mechanism, proved=False)
            return Admitted(account, mechanism, (*token_headers, ("Persistent-Auth", "true")))
        return Admitted(account, mechanism, token_headers)


def _token_headers(scheme: str, token: bytes | None) -> Headers:
    return challenges(f"{scheme} {b64encode(token).decode()}") if token else ()


Protection = Literal["off", "allow", "require"]
_WEAK = (hashes.MD5, hashes.SHA1)
_NONE = bytes(16)


def server_end_point(certificate: bytes) -> bytes:
    """Return the channel binding of a server with this certificate (DER)."""
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    if algorithm is None or isinstance(algorithm, _WEAK):
        algorithm = hashes.SHA256()
    return b"tls-server-end-point:" + hashlib.new(algorithm.name, certificate).digest()


class ChannelBinding:
    """The channel binding that a connection's credentials must have. `data` is None without TLS."""

    def __init__(self, protection: Protection, certificate: bytes | None) -> None:
        self.required = protection == "require"
        self.data = None if certificate is None or protection == "off" else server_end_point(certificate)
        self._checked = protection != "off"

    def accepts(self, given: bytes | None) -> bool:
        """Return whether NTLM credentials with this MD5 hash of the binding are accepted. None or zeros mean
        no binding."""
        if not self._checked:
            return True
        if given in (None, _NONE):
            return not self.required
        return self.data is not None and given == ntlm_hash(self.data)


def ntlm_hash(data: bytes) -> bytes:
    """Return the hash of a gss_channel_bindings_struct without addresses."""
    return hashlib.md5(struct.pack("<5I", 0, 0, 0, 0, len(data)) + data, usedforsecurity=False).digest()


SIGNATURE = b"NTLMSSP\0"
_START = SIGNATURE + struct.pack("<I", 3)
_NT_RESPONSE, _DOMAIN, _USER, _FLAGS = 20, 28, 36, 60
_UNICODE = 1
_PAIRS = 44
"""Offset of the AV pairs in an NTLMv2 response: after the proof and the header of the client challenge."""
_END_OF_LIST, _CHANNEL_BINDINGS = 0, 10


class Authenticate(NamedTuple):
    """An NTLM AUTHENTICATE message (MS-NLMP 2.2.1.3). `binding` is the MD5 hash of the channel binding, or
    None."""

    user: str
    domain: str
    binding: bytes | None

    @property
    def name(self) -> str:
        return f"{self.domain}\\{self.user}" if self.domain else self.user


def find_authenticate(token: bytes) -> Authenticate | None:
    """Return the AUTHENTICATE message in a token, bare or wrapped in SPNEGO, or None. Raises ValueError if it
    is malformed."""
    at = token.find(_START)
    if at < 0:
        return None
    message = token[at:]
    try:
        (flags,) = struct.unpack_from("<I", message, _FLAGS)
        coding = "utf-16-le" if flags & _UNICODE else "ascii"
        response = _field(message, _NT_RESPONSE)
        user, domain = (_field(message, place).decode(coding) for place in (_USER, _DOMAIN))
        return Authenticate(user, domain, _binding(response))
    except struct.error as error:
        raise ValueError(str(error)) from None


def _field(message: bytes, place: int) -> bytes:
    length, _, offset = struct.unpack_from("<HHI", message, place)
    if offset + length > len(message):
        raise ValueError("a field exceeds the message")
    return message[offset : offset + length]


def _binding(response: bytes) -> bytes | None:
    at = _PAIRS
    while at < len(response):
        kind, length = struct.unpack_from("<HH", response, at)
        if kind == _END_OF_LIST:
            break
        if kind == _CHANNEL_BINDINGS:
            return response[at + 4 : at + 4 + length]
        at += 4 + length
    return None


PYSPNEGO_ERRORS = (
    SpnegoError,
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    StopIteration,
    ArithmeticError,
)
"""What pyspnego raises for a malformed or invalid token."""


class Ntlm:
    """The NTLM scheme."""

    def __init__(self, accounts: Accounts, protection: Protection) -> None:
        self._accounts = accounts
        self._protection = protection

    def login(self, certificate: bytes | None) -> ConnectionLogin:
        binding = ChannelBinding(self._protection, certificate)
        return ConnectionLogin(self._accounts, {"NTLM": partial(NtlmAcceptor, self._accounts, binding)})


class NtlmAcceptor:
    """One NTLM handshake, by pyspnego. Account lookup, lockout and channel binding are checked here.

    pyspnego's own check of channel bindings accepts zeros and has no "allow" mode.
    """

    mechanism = "ntlm"

    def __init__(self, accounts: Accounts, binding: ChannelBinding, protocol: str = "ntlm") -> None:
        self._accounts = accounts
        self._binding = binding
        with _password_file({}):
            self._context = spnego.server(protocol=protocol)
        self.account: str | None = None

    def step(self, token: bytes) -> bytes | None:
        """Return the answer to the client's next token. Raises InvalidCredentials."""
        try:
            proof = find_authenticate(token)
        except ValueError:
            raise InvalidCredentials("", "handshake") from None
        account = self._accounts.find(proof.name) if proof else None
        if proof and account is None:
            raise InvalidCredentials(proof.name, "password")
        known = {proof.name: self._accounts.passwords[account]} if proof and account else {}
        try:
            with _password_file(known):
                answer = self._context.step(token)
        except PYSPNEGO_ERRORS:
            if account is None:
                raise InvalidCredentials("", "handshake") from None
            raise InvalidCredentials(account, "password") from None
        if proof and not self._binding.accepts(proof.binding):
            raise InvalidCredentials(account or "", "binding")
        if self._context.complete:
            self.account = account
        return answer


@contextmanager
def _password_file(passwords: dict[str, str]) -> Iterator[None]:
    """Give pyspnego's acceptor these passwords while the context is open.

    It accepts them only in the file that NTLM_USER_FILE names. The file is in memory and never on a disk.
    """
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


_CHANNEL_BOUND = 2048
"""GSS_C_CHANNEL_BOUND_FLAG: the client sent a channel binding and it matches."""


def load_key(keytab: Path) -> Any:
    """Return the gssapi.Credentials that accept tickets. Raises OSError if the file has no keys or Kerberos
    is not installed."""
    try:
        import gssapi
    except ImportError:
        raise OSError("a keytab needs Kerberos: pip install 'ews-listener[kerberos]'") from None
    try:
        return gssapi.Credentials(usage="accept", store={"keytab": str(keytab)})
    except gssapi.exceptions.GSSError as error:
        raise OSError(f"no key in {keytab}: {error}") from None


class KerberosAcceptor:
    """One Kerberos handshake of one leg, by libkrb5 with its own SPNEGO, so that client and server do not
    share pyspnego."""

    mechanism = "kerberos"

    def __init__(self, accounts: Accounts, binding: ChannelBinding, key: Any) -> None:
        import gssapi

        self._accounts = accounts
        self._bound = binding.required
        bindings = None
        if binding.data is not None:
            bindings = gssapi.raw.ChannelBindings(application_data=binding.data)
        self._context = gssapi.SecurityContext(creds=key, usage="accept", channel_bindings=bindings)
        self.account: str | None = None

    def step(self, token: bytes) -> bytes | None:
        import gssapi

        answer: bytes | None = None
        try:
            answer = self._context.step(token)
            complete = self._context.complete  # raises an error that has a token; step does not
        except gssapi.exceptions.BadChannelBindingsError:
            raise InvalidCredentials("", "binding", answer) from None
        except gssapi.exceptions.GSSError:
            raise InvalidCredentials("", "ticket", answer) from None
        if complete:
            name = str(self._context.initiator_name)
            account = self._accounts.find(name)
            if account is None:
                raise InvalidCredentials(name, "ticket")
            if self._bound and not int(self._context.actual_flags) & _CHANNEL_BOUND:
                raise InvalidCredentials(account, "binding")
            self.account = account
        return answer


class Negotiate:
    """The Negotiate scheme (SPNEGO, RFC 4178): Kerberos with a keytab, else NTLM. It also offers bare NTLM,
    like Exchange.

    `keytab` has the key of HTTP/host. Raises OSError; see `load_key`.
    """

    def __init__(self, accounts: Accounts, protection: Protection, keytab: Path | None) -> None:
        self._accounts = accounts
        self._protection = protection
        self._key = None if keytab is None else load_key(keytab)

    def login(self, certificate: bytes | None) -> ConnectionLogin:
        binding = ChannelBinding(self._protection, certificate)
        offer: dict[str, Callable[[], Acceptor]] = {
            "Negotiate": partial(NegotiateAcceptor, self._accounts, binding, self._key),
            "NTLM": partial(NtlmAcceptor, self._accounts, binding),
        }
        return ConnectionLogin(self._accounts, offer)


class NegotiateAcceptor:
    """One Negotiate handshake. Without a `key` it accepts only NTLM."""

    def __init__(self, accounts: Accounts, binding: ChannelBinding, key: Any) -> None:
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
            if self._key is None or SIGNATURE in token:
                self._acceptor = NtlmAcceptor(self._accounts, self._binding, "negotiate")
            else:
                self._acceptor = KerberosAcceptor(self._accounts, self._binding, self._key)
        return self._acceptor.step(token)
