"""The allow-list of servers that the account's credentials may be sent to.

One rule for everything that an answer names: HTTP redirects, X-MS-Location, redirects inside Autodiscover answers,
SRV records and EWS URLs. It is https, on a host

1. of the mail domain that is asked about, or below it;
2. that the configuration names: the host and port of `autodiscover_url`, `ews_url` and `[[groups]] ews_url`, or
   another host of the same domain;
3. that `[exchange] autodiscover_hosts` or `[[servers]] hosts` allows;
4. of Exchange Online.

Names are compared label by label in IDNA's ASCII form, so that neither evil-example.com nor example.com.evil.example
passes for example.com, and a look-alike letter shows as xn--.


Where else Autodiscover may be: what an unprotected redirect and the DNS tell of a mail domain.

Both are hints without proof: whoever sits on the way can write them. So no credentials go along, and a hint leads to
https only, and only to hosts of the mail domain itself or to those that the configuration allows. The order, first
the redirect and then the SRV record, is that of "Autodiscover for Exchange", learn.microsoft.com.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import httpx
import structlog
import trio

from listener.errors import ExchangeError
from listener.ews.autodiscover import POX_PATH, SOAP_PATH
from listener.ews.codes import Failure
from listener.ews.urls import Url, UrlError, is_ip_address, join_url, parse_host, parse_url
from listener.ews.xml import excerpt
from listener.exchange.network import Network, hide_location, location_of
from listener.exchange.transport_errors import mapped_errors

EXCHANGE_ONLINE = (
    "outlook.office365.com",
    "outlook.office.com",
    "autodiscover-s.outlook.com",
    "outlook.office365.us",
    "autodiscover-s.office365.us",
    "webmail.apps.mil",
    "autodiscover-s-dod.office365.us",
    "partner.outlook.cn",
    "autodiscover-s.partner.outlook.cn",
)
"""Where Exchange Online and its Autodiscover are ("Microsoft 365 endpoints", learn.microsoft.com)."""


class RedirectAllowList:
    """`allowed` are hosts, mail domains, or globs of them; one with a port allows that port only. `configured` are
    the URLs of the configuration."""

    def __init__(self, allowed: Sequence[str], configured: Iterable[str] = ()) -> None:
        self._allowed = (*allowed, *EXCHANGE_ONLINE)
        self._configured = [parse_url(url) for url in configured]
        self._domains = {domain for url in self._configured for domain in _domains_of(url.host)}

    def url(self, text: str, domain: str, who: str) -> Url:
        """A URL that `who` names, if credentials may be sent there for mailboxes of this mail domain.

        Raises ExchangeError: InvalidUrl, InsecureRedirect, UntrustedRedirect. http passes only for the exact server
        of a configured http URL.
        """
        url = parsed(text, who)
        if url.scheme != "https" and url.origin not in {each.origin for each in self._configured}:
            raise ExchangeError(
                Failure(code="InsecureRedirect", text=f"{who} names {excerpt(url.text)}, which is not https")
            )
        self.check(url, domain, who)
        return url

    def redirect(self, text: str, domain: str, who: str) -> Url:
        """As url(), for a redirect, which is never followed to http."""
        url = parsed(text, who)
        if url.scheme != "https":
            raise ExchangeError(
                Failure(code="InsecureRedirect", text=f"{who} redirects to {excerpt(url.text)}")
            )
        self.check(url, domain, who)
        return url

    def check(self, url: Url, domain: str, who: str) -> None:
        """Raises ExchangeError unless credentials may be sent to the server of this URL."""
        if not self._is_configured(url) and not self._is_allowed(url.host, domain, url.port):
            raise ExchangeError(untrusted(url.netloc, who))

    def check_domain(self, target: str, domain: str, who: str) -> None:
        """Raises ExchangeError unless mailboxes of `domain` may be sought as mailboxes of the domain `target`."""
        if not self._is_allowed(target, domain, None):
            raise ExchangeError(untrusted(target, who))

    def _is_configured(self, url: Url) -> bool:
        return any(url.host == each.host and url.port in (each.port, 443) for each in self._configured)

    def _is_allowed(self, host: str, domain: str, port: int | None) -> bool:
        own = _host(domain)
        if host == own or ("." in own and host.endswith(f".{own}") and not is_ip_address(own)):
            return True
        # Another port of a configured host is another server: _is_configured() decides about the host itself.
        configured = any(host == each.host for each in self._configured)
        if not configured and any(host.endswith(f".{each}") for each in self._domains):
            return True
        return any(
            fnmatchcase(host, pattern) or (port is not None and fnmatchcase(f"{host}:{port}", pattern))
            for pattern in self._allowed
        )


def parsed(text: str, who: str) -> Url:
    """The URL that `who` names. Raises ExchangeError InvalidUrl."""
    try:
        return parse_url(text)
    except UrlError as error:
        raise ExchangeError(invalid(text, who, error)) from None


def invalid(text: str, who: str, error: UrlError) -> Failure:
    """The failure of a URL that cannot be used."""
    return Failure(
        code="InvalidUrl", text=f"{who} names a URL that cannot be used, {excerpt(text)!r}: {error}"
    )


def untrusted(host: str, who: str) -> Failure:
    """The failure of a server that is not on the allow-list."""
    return Failure(
        code="UntrustedRedirect",
        text=f"{who} leads to {host}: if that is right, allow it in [exchange] autodiscover_hosts",
    )


def _host(domain: str) -> str:
    try:
        return parse_host(domain)
    except UrlError:
        return ""


def _domains_of(host: str) -> list[str]:
    """The domains below which all names are those of this host's owner.

    One is the name itself. The other is the parent of a name of three labels or more, unless it is the domain of a
    registry, such as co.uk, or of a provider: everybody can have a name there.
    """
    if is_ip_address(host) or "." not in host:
        return []
    labels = host.split(".")[1:]
    parent = ".".join(labels)
    registry = len(labels) < 2 or (len(labels) == 2 and len(labels[1]) == 2 and len(labels[0]) <= 3)
    shared = any(parent == each or parent.endswith(f".{each}") for each in SHARED)
    return [host] if registry or shared else [host, parent]


SHARED = frozenset(
    (
        "amazonaws.com",
        "azure.com",
        "azurefd.net",
        "azurewebsites.net",
        "cloudapp.net",
        "cloudfront.net",
        "duckdns.org",
        "msappproxy.net",
        "no-ip.org",
        "office.com",
        "office365.com",
        "onmicrosoft.com",
        "outlook.com",
        "trafficmanager.net",
        "windows.net",
    )
)
"""Domains of providers in which many organizations have names."""


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
