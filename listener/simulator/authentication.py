"""Who is asking. Each connection has a `Login`, since some schemes authenticate a connection and not a request."""

from base64 import b64decode
from collections.abc import Mapping
from hmac import compare_digest
from typing import NamedTuple, Protocol


class Denied(NamedTuple):
    """401, with these values of WWW-Authenticate: one a header."""

    challenges: tuple[str, ...]


class Login(Protocol):
    """The state of authentication of one connection."""

    def check(self, authorization: str | None) -> str | Denied:
        """The account that a request is made by, given its Authorization header."""
        ...


class BasicLogin:
    """RFC 7617. It keeps no state: every request brings the password."""

    def __init__(self, accounts: Mapping[str, str], realm: str) -> None:
        self._accounts = accounts
        self._denied = Denied((f'Basic realm="{realm}"',))

    def check(self, authorization: str | None) -> str | Denied:
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return self._denied
        try:
            user, _, password = b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:
            return self._denied
        expected = self._accounts.get(user.lower())
        if expected is None or not compare_digest(expected.encode(), password.encode()):
            return self._denied
        return user.lower()
