"""Accounts and their authentication schemes. `kind` in [auth] and [[servers]] selects the scheme of each server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from listener.config import AnyAuth, BasicAuth, Config, NegotiateAuth, NtlmAuth, OAuthAuth
from listener.exchange.auth.basic import Basic
from listener.exchange.auth.lockout import LockoutProtection, RefusalStore
from listener.exchange.auth.oauth import OAuth, Tokens
from listener.exchange.auth.scheme import Credentials, Scheme
from listener.exchange.network import Network

__all__ = ["Account", "Accounts", "Basic", "Credentials", "LockoutProtection", "Scheme", "accounts"]


class Account:
    """One account: its authentication scheme and its lockout protection."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.lockout = LockoutProtection(scheme.account, lambda: scheme.password)


class Accounts:
    """The account for each server."""

    def __init__(self, account_for: Callable[[str], Account]) -> None:
        self._account_for = account_for
        self._used: dict[Account, None] = {}
        self._store: RefusalStore | None = None

    @classmethod
    def single(cls, scheme: Scheme) -> Accounts:
        """Return an object with the same account for all servers."""
        account = Account(scheme)
        return cls(lambda _url: account)

    def of(self, url: str) -> Account:
        """Return the account for requests to this URL."""
        account = self._account_for(url)
        if account not in self._used:
            self._used[account] = None
            if self._store is not None:
                account.lockout.persist(self._store)
        return account

    def persist_refusals(self, path: Path) -> None:
        """Load the refusals of an earlier process from this file, and store new ones in it."""
        self._store = RefusalStore(path)
        for account in self._used:
            account.lockout.persist(self._store)

    @property
    def in_use(self) -> tuple[Account, ...]:
        """All accounts that of() has returned."""
        return tuple(self._used)


def accounts(config: Config, network: Network) -> Accounts:
    """Return the accounts of [auth] and [[servers]]. Servers with equal settings share one account.

    Access tokens are requested over `network`.
    """
    # Compared once, at the start: secrets are reloaded one after another, so equal settings differ for a moment.
    distinct: list[AnyAuth] = []
    first_equal: dict[int, AnyAuth] = {}  # by id() of the settings
    for auth in (config.auth, *(server.auth for server in config.servers)):
        first = next((other for other in distinct if other == auth), None)
        if first is None:
            distinct.append(auth)
        first_equal[id(auth)] = first or auth
    created: dict[int, Account] = {}

    def account_for(url: str) -> Account:
        auth = first_equal[id(config.auth_for(url))]
        if id(auth) not in created:
            created[id(auth)] = Account(scheme(auth, network))
        return created[id(auth)]

    return Accounts(account_for)


def scheme(auth: AnyAuth, network: Network) -> Scheme:
    """Return the scheme of these settings. Imports only the modules of that scheme: the others are slow to import."""
    match auth:
        case BasicAuth(user=user, password=password):
            return Basic(Credentials(user, password))
        case NtlmAuth(user=user, password=password):
            from listener.exchange.auth.ntlm import Ntlm

            return Ntlm(Credentials(user, password))
        case NegotiateAuth(user=user, password=password, spn=spn):
            from listener.exchange.auth.negotiate import Negotiate

            credentials = Credentials(user, password) if user is not None and password is not None else None
            return Negotiate(credentials, user, spn)
        case OAuthAuth():
            from listener.exchange.auth.entra import Entra

            entra = Entra(auth, network.tls, network.proxy)
            return OAuth(Tokens(entra.fetch, entra.account), entra.account)
