"""Which hosts Autodiscover may lead to: the account's credentials are sent to whoever is asked."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from listener.errors import ExchangeError
from listener.ews.codes import Failure


class Believed:
    """`allowed` are hosts, mail domains, or globs of them, outside of the mail domain."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed

    def check(self, host: str, domain: str, who: str) -> None:
        """Raises ExchangeError unless the host is of the mail domain, or allowed. `who` leads to it."""
        host, domain = host.lower(), domain.lower()
        own = host == domain or host.endswith(f".{domain}")
        if not own and not any(fnmatchcase(host, pattern) for pattern in self._allowed):
            text = f"{who} leads to {host}: if that is right, allow it in [exchange] autodiscover_hosts"
            raise ExchangeError(Failure(code="UntrustedRedirect", text=text))
