"""Where else Autodiscover may be: what an unprotected redirect and the DNS tell of a mail domain.

Both are hints without proof: whoever sits on the way can write them. So no credentials go along, and a hint leads to
https only, and only to hosts of the mail domain itself or to those that the configuration allows. The order, first
the redirect and then the SRV record, is that of "Autodiscover for Exchange", learn.microsoft.com.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import httpx
import structlog
import trio

from listener.errors import ExchangeError
from listener.ews.autodiscover import POX_PATH, SOAP_PATH
from listener.ews.urls import Url, UrlError, join_url
from listener.ews.xml import excerpt
from listener.exchange.network import Network, hide_location, location_of
from listener.exchange.redirect_allow_list import RedirectAllowList, invalid
from listener.exchange.transport_errors import mapped_errors

log = structlog.get_logger()

PATIENCE = 10.0


class Service(NamedTuple):
    """What an SRV record says (RFC 2782): the lowest priority first, of those the heaviest."""

    priority: int
    weight: int
    host: str
    port: int


Resolve = Callable[[str], Awaitable[Sequence[Service]]]
"""The SRV records of a name; none if there are none or DNS does not answer."""


class RedirectDiscovery:
    """Asks for what leads on, and says which of it may be followed."""

    def __init__(
        self, network: Network, user_agent: str, allow_list: RedirectAllowList, resolve: Resolve | None = None
    ) -> None:
        self._network = network
        self._user_agent = user_agent
        self._allow_list = allow_list
        self._resolve = resolve or srv_records

    async def redirect(self, domain: str) -> str | None:
        """Where plain http at `autodiscover.` and the domain sends us; None if it does not.

        Raises ExchangeError if that is not https, or no host that may be believed.
        """
        asked = f"http://autodiscover.{domain}{POX_PATH}"
        headers = {"User-Agent": self._user_agent}
        try:
            # Its body is not read: whatever stands there, only the status and a header count.
            with trio.fail_after(PATIENCE), mapped_errors():
                async with (
                    httpx.AsyncClient(
                        transport=self._network.pool(),
                        trust_env=False,
                        timeout=PATIENCE,
                        event_hooks={"response": [hide_location]},
                    ) as http,
                    http.stream("GET", asked, headers=headers) as answer,
                ):
                    pass
        except (ExchangeError, trio.TooSlowError) as error:
            log.debug(
                "discovery.hint_failed", asked=asked, reason=excerpt(str(error)) or type(error).__name__
            )
            return None
        location = location_of(answer)
        if answer.status_code not in REDIRECTS or location is None:
            return None
        try:
            target = join_url(asked, location)
        except UrlError as error:
            raise ExchangeError(invalid(location, asked, error)) from None
        return self._followed(self._allow_list.redirect(target.text, domain, asked), asked)

    async def service(self, domain: str) -> str | None:
        """Where the SRV record of the domain points; None if there is none. Raises ExchangeError as redirect()."""
        asked = f"_autodiscover._tcp.{domain}"
        for service in sorted(await self._resolve(asked), key=lambda s: (s.priority, -s.weight)):
            if host := service.host.rstrip("."):  # a lone dot means that there is no such service
                who = f"the SRV record {asked}"
                target = self._allow_list.redirect(f"https://{host}:{service.port}", domain, who)
                return self._followed(target, who)
        return None

    def _followed(self, target: Url, who: str) -> str:
        url = target._replace(path=SOAP_PATH).text
        log.info("discovery.hint", asked=who, url=url)
        return url


async def srv_records(name: str) -> Sequence[Service]:
    """Asks the system's DNS servers."""
    # It takes a tenth of a second to import, and few ever come here.
    import dns.asyncbackend
    import dns.asyncresolver
    import dns.exception

    try:
        answer = await dns.asyncresolver.resolve(
            name, "SRV", lifetime=PATIENCE, backend=dns.asyncbackend.get_backend("trio")
        )
    except (dns.exception.DNSException, OSError, ValueError, trio.BrokenResourceError) as error:
        log.debug("discovery.hint_failed", asked=name, reason=str(error) or type(error).__name__)
        return ()
    return [Service(r.priority, r.weight, r.target.to_text(omit_final_dot=True), r.port) for r in answer]


REDIRECTS = frozenset((301, 302, 303, 307, 308))
