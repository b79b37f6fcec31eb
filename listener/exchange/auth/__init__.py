"""How the account proves who it is: one small class a scheme, chosen by `kind` for each server."""

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
    """One account: how it proves who it is, and whether it may try just now."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.lockout = LockoutProtection(scheme.account, lambda: scheme.password)


class Accounts:
    """The account for each server."""

    def __init__(self, of: Callable[[str], Account]) -> None:
        self._of = of
        self._asked: dict[Account, None] = {}
        self._memory: RefusalStore | None = None

    @classmethod
    def same(cls, scheme: Scheme) -> Accounts:
        """One for all servers."""
        account = Account(scheme)
        return cls(lambda _url: account)

    def of(self, url: str) -> Account:
        """The account for requests to this URL."""
        account = self._of(url)
        if account not in self._asked:
            self._asked[account] = None
            if self._memory is not None:
                account.lockout.remember(self._memory)
        return account

    def remember(self, path: Path) -> None:
        """Refusals are kept in this file from now on, and those of an earlier process count."""
        self._memory = RefusalStore(path)
        for account in self._asked:
            account.lockout.remember(self._memory)

    @property
    def in_use(self) -> tuple[Account, ...]:
        """All that were asked for."""
        return tuple(self._asked)


def accounts(config: Config, network: Network) -> Accounts:
    """What [auth] and [[servers]] say; servers with the same words share an account. Tokens come by `network`."""
    # Which have the same words is settled here and now: secrets are read again, and differ for a while.
    distinct: list[AnyAuth] = []
    first_of: dict[int, AnyAuth] = {}  # by identity
    for auth in (config.auth, *(server.auth for server in config.servers)):
        first = next((other for other in distinct if other == auth), None)
        if first is None:
            distinct.append(auth)
        first_of[id(auth)] = first or auth
    made: dict[int, Account] = {}

    def of(url: str) -> Account:
        auth = first_of[id(config.auth_for(url))]
        if id(auth) not in made:
            made[id(auth)] = Account(scheme(auth, network))
        return made[id(auth)]

    return Accounts(of)


def scheme(auth: AnyAuth, network: Network) -> Scheme:
    """The scheme that the configuration names. What others are made of is not imported: it takes long."""
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
