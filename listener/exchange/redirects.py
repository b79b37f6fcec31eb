"""Redirects to other servers: the allow-list, and redirect discovery for Autodiscover.

The allow-list applies one rule to every URL that a response names: HTTP redirects, X-MS-Location, redirects inside
Autodiscover responses, SRV records and EWS URLs. Credentials are sent only over https, to a host

1. of the mail domain that is asked about, or below it;
2. that the configuration names: the host and port of `autodiscover_url`, `ews_url` and `[[groups]] ews_url`, or
   another host of the same domain;
3. that `[exchange] autodiscover_hosts` or `[[servers]] hosts` allows;
4. of Exchange Online.

Names are compared label by label in IDNA's ASCII form, so that neither evil-example.com nor example.com.evil.example
passes for example.com, and a look-alike letter appears as xn--.

Redirect discovery finds Autodiscover endpoints that the mail domain does not have itself: by a redirect over plain
http, then by an SRV record ("Autodiscover for Exchange", learn.microsoft.com). Anyone on the network path can forge
both. So no credentials are sent with these requests, and the allow-list checks their results.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import httpx
import structlog
import trio

from listener.ews.autodiscover import POX_PATH, SOAP_PATH
from listener.ews.codes import ExchangeError, Failure
from listener.ews.urls import Url, UrlError, is_ip_address, join_url, parse_host, parse_url
from listener.ews.xml import excerpt
from listener.exchange.network import Network, hide_location, location_of
from listener.exchange.transport_errors import mapped_errors

log = structlog.get_logger()

# --- the allow-list

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
"""The hosts of Exchange Online and its Autodiscover ("Microsoft 365 endpoints", learn.microsoft.com)."""

SHARED_DOMAINS = frozenset(
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


class RedirectAllowList:
    """The servers that credentials may be sent to.

    `allowed` are hosts, mail domains, or globs of them; an entry with a port allows that port only. `configured` are
    the URLs of the configuration. In all methods, `domain` is the mail domain that is asked about, and `source` names
    in error texts what the URL comes from.
    """

    def __init__(self, allowed: Sequence[str], configured: Iterable[str] = ()) -> None:
        self._allowed = (*allowed, *EXCHANGE_ONLINE)
        self._configured = [parse_url(url) for url in configured]
        self._domains = {domain for url in self._configured for domain in _owned_domains(url.host)}

    def checked_url(self, text: str, domain: str, source: str) -> Url:
        """Return the URL if credentials may be sent to it.

        Raises ExchangeError: InvalidUrl, InsecureRedirect, UntrustedRedirect. http passes only for the exact server
        of a configured http URL.
        """
        url = parse_named_url(text, source)
        if url.scheme != "https" and url.origin not in {each.origin for each in self._configured}:
            text = f"{source} names {excerpt(url.text)}, which is not https"
            raise ExchangeError(Failure(code="InsecureRedirect", text=text))
        self.check(url, domain, source)
        return url

    def checked_redirect(self, text: str, domain: str, source: str) -> Url:
        """Return the URL of a redirect if it may be followed. Like checked_url(), but http never passes."""
        url = parse_named_url(text, source)
        if url.scheme != "https":
            text = f"{source} redirects to {excerpt(url.text)}, which is not https"
            raise ExchangeError(Failure(code="InsecureRedirect", text=text))
        self.check(url, domain, source)
        return url

    def check(self, url: Url, domain: str, source: str) -> None:
        """Raise ExchangeError `UntrustedRedirect` unless credentials may be sent to the server of this URL."""
        if not self._is_configured(url) and not self._is_allowed(url.host, domain, url.port):
            raise ExchangeError(untrusted_host(url.netloc, source))

    def check_domain(self, target: str, domain: str, source: str) -> None:
        """Raise ExchangeError `UntrustedRedirect` unless a redirect to addresses of domain `target` is allowed."""
        if not self._is_allowed(target, domain, None):
            raise ExchangeError(untrusted_host(target, source))

    def _is_configured(self, url: Url) -> bool:
        return any(url.host == each.host and url.port in (each.port, 443) for each in self._configured)

    def _is_allowed(self, host: str, domain: str, port: int | None) -> bool:
        own = _host_or_empty(domain)
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


def parse_named_url(text: str, source: str) -> Url:
    """Return the URL that `source` names. Raises ExchangeError `InvalidUrl`."""
    try:
        return parse_url(text)
    except UrlError as error:
        raise ExchangeError(invalid_url(text, source, error)) from None


def invalid_url(text: str, source: str, error: UrlError) -> Failure:
    """Return the failure of a URL that cannot be used."""
    return Failure(code="InvalidUrl", text=f"{source} names an invalid URL, {excerpt(text)!r}: {error}")


def untrusted_host(host: str, source: str) -> Failure:
    """Return the failure of a server that is not on the allow-list."""
    return Failure(
        code="UntrustedRedirect",
        text=f"{source} names the host {host}, which is not trusted: if it is correct, add it to [exchange] "
        "autodiscover_hosts",
    )


def _host_or_empty(domain: str) -> str:
    try:
        return parse_host(domain)
    except UrlError:
        return ""


def _owned_domains(host: str) -> list[str]:
    """Return the domains whose names all belong to this host's owner.

    One is the host itself. The other is the parent of a name of three labels or more, unless the parent is a domain
    of a registry, such as co.uk, or of a provider: any organization can have a name there.
    """
    if is_ip_address(host) or "." not in host:
        return []
    labels = host.split(".")[1:]
    parent = ".".join(labels)
    registry = len(labels) < 2 or (len(labels) == 2 and len(labels[1]) == 2 and len(labels[0]) <= 3)
    shared = any(parent == each or parent.endswith(f".{each}") for each in SHARED_DOMAINS)
    return [host] if registry or shared else [host, parent]


# --- redirect discovery

TIMEOUT = 10.0
"""Seconds for the plain http request, and for the DNS query."""
REDIRECT_STATUSES = frozenset((301, 302, 303, 307, 308))


class SrvRecord(NamedTuple):
    """An SRV record (RFC 2782). The lowest priority comes first, and within a priority the highest weight."""

    priority: int
    weight: int
    host: str
    port: int


Resolve = Callable[[str], Awaitable[Sequence[SrvRecord]]]
"""Returns the SRV records of a name; none if there are none or DNS does not answer."""


class RedirectDiscovery:
    """Finds Autodiscover endpoints by a plain http redirect and by an SRV record, if the allow-list permits them."""

    def __init__(
        self, network: Network, user_agent: str, allow_list: RedirectAllowList, resolve: Resolve | None = None
    ) -> None:
        self._network = network
        self._user_agent = user_agent
        self._allow_list = allow_list
        self._resolve = resolve or srv_records

    async def http_redirect(self, domain: str) -> str | None:
        """Return the endpoint that plain http at `autodiscover.` and the domain redirects to; None if it does not.

        Raises ExchangeError if the target is not https or not on the allow-list.
        """
        asked = f"http://autodiscover.{domain}{POX_PATH}"
        headers = {"User-Agent": self._user_agent}
        try:
            # The body is not read: only the status and the Location header matter.
            with trio.fail_after(TIMEOUT), mapped_errors():
                async with (
                    httpx.AsyncClient(
                        transport=self._network.pool(),
                        trust_env=False,
                        timeout=TIMEOUT,
                        event_hooks={"response": [hide_location]},
                    ) as http,
                    http.stream("GET", asked, headers=headers) as response,
                ):
                    pass
        except (ExchangeError, trio.TooSlowError) as error:
            log.debug(
                "discovery.hint_failed", asked=asked, reason=excerpt(str(error)) or type(error).__name__
            )
            return None
        location = location_of(response)
        if response.status_code not in REDIRECT_STATUSES or location is None:
            return None
        try:
            target = join_url(asked, location)
        except UrlError as error:
            raise ExchangeError(invalid_url(location, asked, error)) from None
        return self._endpoint(self._allow_list.checked_redirect(target.text, domain, asked), asked)

    async def srv_redirect(self, domain: str) -> str | None:
        """Return the endpoint of the domain's SRV record; None if there is no record.

        Raises ExchangeError if the target is not on the allow-list.
        """
        name = f"_autodiscover._tcp.{domain}"
        for record in sorted(await self._resolve(name), key=lambda r: (r.priority, -r.weight)):
            if host := record.host.rstrip("."):  # a single dot means that there is no such service
                source = f"the SRV record {name}"
                target = self._allow_list.checked_redirect(f"https://{host}:{record.port}", domain, source)
                return self._endpoint(target, source)
        return None

    def _endpoint(self, target: Url, source: str) -> str:
        url = target._replace(path=SOAP_PATH).text
        log.info("discovery.hint", asked=source, url=url)
        return url


async def srv_records(name: str) -> Sequence[SrvRecord]:
    """Query the system's DNS servers."""
    # Importing it takes 0.1 s, and few configurations need it.
    import dns.asyncbackend
    import dns.asyncresolver
    import dns.exception

    try:
        answer = await dns.asyncresolver.resolve(
            name, "SRV", lifetime=TIMEOUT, backend=dns.asyncbackend.get_backend("trio")
        )
    except (dns.exception.DNSException, OSError, ValueError, trio.BrokenResourceError) as error:
        log.debug("discovery.hint_failed", asked=name, reason=str(error) or type(error).__name__)
        return ()
    return [SrvRecord(r.priority, r.weight, r.target.to_text(omit_final_dot=True), r.port) for r in answer]
