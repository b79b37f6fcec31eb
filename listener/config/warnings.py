"""Warnings: probable mistakes in a valid configuration. `check` prints them, and the daemon logs them.

Exchange, grommunio and other servers have EWS at `/EWS/Exchange.asmx`, in upper or lower case. A server may be
published at another path, so another path causes a warning, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

from listener.config.model import Config
from listener.config.problems import Loc, dotted
from listener.config.rules import unmatched_mailboxes
from listener.errors import Problem

EWS_PATH: Final = "/EWS/Exchange.asmx"
AUTODISCOVER_PATH: Final = "/autodiscover/autodiscover.svc"
_AUTODISCOVER_PATHS: Final = (AUTODISCOVER_PATH, "/autodiscover/autodiscover.xml")

_OTHER_PATHS: Final = (
    # The service of each first path segment.
    ("owa", "Outlook on the web"),
    ("ecp", "the Exchange admin center"),
    ("mapi", "MAPI over HTTP"),
    ("rpc", "RPC over HTTP"),
    ("powershell", "Exchange PowerShell"),
    ("microsoft-server-activesync", "ActiveSync"),
    ("oab", "the offline address book"),
    ("api", "the REST API"),
    ("autodiscover", "Autodiscover"),
)
_PLAIN_PORTS: Final = (80, 8080)
_TLS_PORTS: Final = (443, 8443)


def warnings(config: Config) -> list[Problem]:
    """Return all warnings, in the order of the sections."""
    return [Problem(dotted(loc), what) for loc, what in _found(config)]


def _found(config: Config) -> Iterator[tuple[Loc, str]]:
    exchange = config.exchange
    if exchange.ews_url and (warning := check_ews_url(exchange.ews_url)):
        yield ("exchange", "ews_url"), str(warning)
    if exchange.autodiscover_url and (warning := check_autodiscover_url(exchange.autodiscover_url)):
        yield ("exchange", "autodiscover_url"), str(warning)
    for index, group in enumerate(config.groups):
        if group.ews_url and (warning := check_ews_url(group.ews_url)):
            yield ("groups", index, "ews_url"), str(warning)
    for loc, _, what in unmatched_mailboxes(config):
        yield loc, what


class UrlWarning(NamedTuple):
    """Why a URL is probably not an endpoint, and the URL to use instead."""

    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.reason}. Use {self.instead}"


def check_ews_url(url: str) -> UrlWarning | None:
    """Return a warning if this is probably not an EWS endpoint, else None."""
    return _check_url(url, "the EWS endpoint", EWS_PATH, (EWS_PATH,))


def check_autodiscover_url(url: str) -> UrlWarning | None:
    """Return a warning if this is probably not an Autodiscover endpoint, else None."""
    return _check_url(url, "an Autodiscover endpoint", AUTODISCOVER_PATH, _AUTODISCOVER_PATHS)


def _check_url(url: str, endpoint: str, path: str, good: tuple[str, ...]) -> UrlWarning | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None  # an invalid URL is reported as an error elsewhere
    reasons = []
    if (other := _other_scheme(parts, port)) is not None:
        reasons.append(f"port {port} is usually for {other}: use {other}://, or correct the port")
        parts = parts._replace(scheme=other)
    if not any(parts.path.lower() == known.lower() for known in good) or parts.query or parts.fragment:
        reasons.append(f"{_describe(parts, good)}, not {endpoint}")
        parts = parts._replace(path=path, query="", fragment="")
    return UrlWarning("; ".join(reasons), urlunsplit(parts)) if reasons else None


def _other_scheme(parts: SplitResult, port: int | None) -> str | None:
    if parts.scheme == "http" and port in _TLS_PORTS:
        return "https"
    return "http" if parts.scheme == "https" and port in _PLAIN_PORTS else None


def _describe(parts: SplitResult, good: tuple[str, ...]) -> str:
    path = parts.path
    lowered = path.lower()
    if any(lowered.rstrip("/") == known.lower() for known in good):
        return "the path ends with a slash, or the URL has a query"
    if not path.strip("/"):
        return "the URL has no path: it is the start page of the server"
    if lowered.endswith(".wsdl") or "wsdl" in parts.query.lower():
        return f"{path} is the description of the service (WSDL)"
    first = lowered.strip("/").partition("/")[0]
    if (known := dict(_OTHER_PATHS).get(first)) is not None:
        return f"{path} is {known}"
    return f"the path is {path}"
