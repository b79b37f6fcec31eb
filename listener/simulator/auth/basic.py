"""User name and password with each request (RFC 7617)."""

from base64 import b64decode

from listener.simulator.auth import Admitted, Denied, challenges
from listener.simulator.auth.accounts import Accounts


class Basic:
    """The scheme, and the login of every connection: it keeps no state."""

    def __init__(self, accounts: Accounts, realm: str) -> None:
        self._accounts = accounts
        self._challenges = challenges(f'Basic realm="{realm}"')

    def login(self, certificate: bytes | None) -> "Basic":
        return self

    def check(self, authorization: str | None, now: float) -> Admitted | Denied:
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return Denied(self._challenges)
        try:
            user, _, password = b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:
            return Denied(self._challenges, refused="", why="password")
        account = self._accounts.find(user)
        if account is None:
            return Denied(self._challenges, refused=user, why="password")
        if self._accounts.is_locked(account) or not self._accounts.knows(account, password):
            why = "locked" if self._accounts.is_locked(account) else "password"
            self._accounts.refuse(account)
            return Denied(self._challenges, refused=account, why=why)
        self._accounts.admit(account)
        return Admitted(account, "basic")
