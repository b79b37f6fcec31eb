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
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.ews.urls import Url, UrlError, is_ip_address, parse_host, parse_url
from listener.ews.xml import excerpt

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
