"""NTLM and Negotiate: a handshake of several requests that belongs to its connection, as IIS has it.

- Each leg is a request of its own, and each but the last is answered 401. A request without the next leg, whatever
  else it is, breaks the handshake: the leg that comes after it is refused.
- Who has come in by NTLM has done so for the whole connection; requests need no header any more. A new handshake
  forgets it.
- Kerberos proves each request anew ("Windows Authentication <windowsAuthentication>", learn.microsoft.com:
  authPersistNonNTLM is false by default).
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Protocol

from listener.simulator.auth import Admitted, Denied, Headers, challenges
from listener.simulator.auth.accounts import Accounts


class Refusal(Exception):  # noqa: N818
    """Credentials of `user` that do not hold; `why` as in Denied. `token` tells the client more, if there is one."""

    def __init__(self, user: str, why: str, token: bytes | None = None) -> None:
        super().__init__(why)
        self.user = user
        self.why = why
        self.token = token


class Acceptor(Protocol):
    """The server's end of one handshake. `account` is None until the proof is there."""

    @property
    def account(self) -> str | None: ...

    @property
    def mechanism(self) -> str: ...

    def step(self, token: bytes) -> bytes | None:
        """The answer to the client's next token. Refusal: it proves nothing."""
        ...


class ConnectionLogin:
    """`schemes` are those on offer, by name, in their order."""

    def __init__(self, accounts: Accounts, schemes: Mapping[str, Callable[[], Acceptor]]) -> None:
        self._accounts = accounts
        self._schemes = {name.lower(): (name, begin) for name, begin in schemes.items()}
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
        name, begin = self._schemes[scheme.lower()]
        try:
            token = b64decode(credentials, validate=True)
        except ValueError:
            return Denied(self._offer, refused="", why="handshake")
        acceptor = handshake[1] if handshake and handshake[0] == name else begin()
        try:
            answer = acceptor.step(token)
        except Refusal as refusal:
            account = self._accounts.find(refusal.user)
            if account and refusal.why == "password":
                self._accounts.refuse(account)
            return Denied(_spoken(name, refusal.token) or self._offer, account or refusal.user, refusal.why)
        spoken = _spoken(name, answer)
        if acceptor.account is None:
            self._handshake = (name, acceptor)
            return Denied(spoken)
        return self._admit(acceptor.account, acceptor.mechanism, spoken)

    def _admit(self, account: str, mechanism: str, spoken: Headers) -> Admitted | Denied:
        if self._accounts.is_locked(account):
            self._accounts.refuse(account)
            return Denied(self._offer, account, "locked")
        self._accounts.admit(account)
        if mechanism == "ntlm":
            self._admitted = Admitted(account, mechanism, proved=False)
            return Admitted(account, mechanism, (*spoken, ("Persistent-Auth", "true")))
        return Admitted(account, mechanism, spoken)


def _spoken(scheme: str, token: bytes | None) -> Headers:
    return challenges(f"{scheme} {b64encode(token).decode()}") if token else ()
