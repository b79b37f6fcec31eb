"""Read the members of distribution groups from Exchange (ExpandDL)."""

from __future__ import annotations

from listener.ews.codes import ExchangeError, Failure
from listener.ews.directory import Expansion, expand_dl, read_expand_dl
from listener.ews.soap import Impersonation
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.discovery import Autodiscover
from listener.placement import Placement


class Expander:
    """Expands distribution groups at `ews_url`, or at the server of `expand_as` if there is no `ews_url`.

    Requests impersonate `expand_as`; without it, they use the account itself.
    """

    def __init__(
        self,
        access: Access,
        discovery: Autodiscover,
        *,
        version: str,
        ews_url: str | None,
        expand_as: Impersonation | None,
    ) -> None:
        self._access = access
        self._discovery = discovery
        self._version = version
        self._ews_url = ews_url
        self._expand_as = expand_as

    async def expand(self, group: str) -> Expansion:
        """Return the members of a group, one level deep. Raises ExchangeError."""
        url = self._ews_url or await self._discover_url()
        body = expand_dl(group, version=self._version, impersonate=self._expand_as)
        headers = {} if self._expand_as is None else {"X-AnchorMailbox": self._expand_as.value}
        async with ExchangeClient(url, self._access) as client:
            return await client.call(body, headers, read_expand_dl)

    async def _discover_url(self) -> str:
        assert self._expand_as is not None, "the configuration requires ews_url or expand_as"
        found = (await self._discovery.discover([self._expand_as.value]))[self._expand_as.value]
        if isinstance(found, Placement):
            return found.ews_url
        raise ExchangeError(Failure(code=found.code, text=f"{self._expand_as.value}: {found.text}"))
