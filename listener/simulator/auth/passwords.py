"""Accounts with passwords, account lockout, and Basic authentication."""

from base64 import b64decode
from collections import Counter
from collections.abc import Mapping
from hmac import compare_digest

from listener.simulator.auth import Admitted, Denied, challenges
from listener.simulator.fault_effects import Conditions


class Accounts:
    """Password accounts. `passwords` maps lower-case user principal names to passwords.

    An account is locked permanently after `lock_after` consecutive refusals (0: never), and temporarily by
    the fault `account_locked`.
    """

    def __init__(self, passwords: Mapping[str, str], lock_after: int, conditions: Conditions) -> None:
        self.passwords = passwords
        self._lock_after = lock_after
        self._conditions = conditions
        self._consecutive_failures: Counter[str] = Counter()
        self._down_level_names = {_down_level_name(account): account for account in passwords}

    @property
    def locked(self) -> list[str]:
        """Accounts with too many refusals."""
        return sorted(filter(self._has_too_many_failures, self._consecutive_failures))

    def find(self, name: str) -> str | None:
        """Return the account with this user principal name or down-level name (DOMAIN\\name), in any case.

        DOMAIN is the first label of the domain.
        """
        lowered = name.strip().lower()
        found = self._down_level_names.get(lowered, lowered)
        return found if found in self.passwords else None

    def password_matches(self, account: str, password: str) -> bool:
        """Return whether this is the account's password. Ignores lockout."""
        return compare_digest(self.passwords[account].encode(), password.encode())

    def is_locked(self, account: str) -> bool:
        return self._conditions.locked is not None or self._has_too_many_failures(account)

    def _has_too_many_failures(self, account: str) -> bool:
        return 0 < self._lock_after <= self._consecutive_failures[account]

    def admit(self, account: str) -> None:
        """Note accepted credentials. Resets the refusals."""
        self._consecutive_failures.pop(account, None)

    def refuse(self, account: str) -> None:
        """Note refused credentials."""
        self._consecutive_failures[account] += 1


def _down_level_name(account: str) -> str:
    local, _, domain = account.partition("@")
    return f"{domain.partition('.')[0]}\\{local}"


class Basic:
    """Basic authentication (RFC 7617). It has no state, so it is also the login of every connection."""

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
            return Denied(self._challenges, refused="", reason="password")
        account = self._accounts.find(user)
        if account is None:
            return Denied(self._challenges, refused=user, reason="password")
        if self._accounts.is_locked(account) or not self._accounts.password_matches(account, password):
            reason = "locked" if self._accounts.is_locked(account) else "password"
            self._accounts.refuse(account)
            return Denied(self._challenges, refused=account, reason=reason)
        self._accounts.admit(account)
        return Admitted(account, "basic")
