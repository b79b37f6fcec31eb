"""Tell whether a URL looks like an EWS or an Autodiscover endpoint, and what it is else (pure).

Exchange, grommunio and other servers have EWS at `/EWS/Exchange.asmx`, in any case of the letters. A server may be
published at another path, so a URL of another form is a reason for a warning, not for a refusal.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

EWS_PATH: Final = "/EWS/Exchange.asmx"
AUTODISCOVER_PATH: Final = "/autodiscover/autodiscover.svc"
_AUTODISCOVER_PATHS: Final = (AUTODISCOVER_PATH, "/autodiscover/autodiscover.xml")

_OTHER_PATHS: Final = (
    # What the first part of a path belongs to.
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


class Doubt(NamedTuple):
    """Why a URL is probably not an endpoint, and the URL to use instead."""

    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.reason}. Use {self.instead}"


def doubt_ews_url(url: str) -> Doubt | None:
    """Return why this is probably not the URL of an EWS endpoint, and what to use; None if it looks good."""
    return _doubt(url, "the EWS endpoint", EWS_PATH, (EWS_PATH,))


def doubt_autodiscover_url(url: str) -> Doubt | None:
    """Return why this is probably not the URL of an Autodiscover endpoint; None if it looks good."""
    return _doubt(url, "an Autodiscover endpoint", AUTODISCOVER_PATH, _AUTODISCOVER_PATHS)


def _doubt(url: str, endpoint: str, path: str, good: tuple[str, ...]) -> Doubt | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None  # a URL that cannot be read is an error of another kind
    reasons = []
    if (other := _other_scheme(parts, port)) is not None:
        reasons.append(f"port {port} is mostly for {other}: use {other}://, or the right port")
        parts = parts._replace(scheme=other)
    if not any(parts.path.lower() == known.lower() for known in good) or parts.query or parts.fragment:
        reasons.append(f"{_what_it_is(parts, good)}, not {endpoint}")
        parts = parts._replace(path=path, query="", fragment="")
    return Doubt("; ".join(reasons), urlunsplit(parts)) if reasons else None


def _other_scheme(parts: SplitResult, port: int | None) -> str | None:
    if parts.scheme == "http" and port in _TLS_PORTS:
        return "https"
    return "http" if parts.scheme == "https" and port in _PLAIN_PORTS else None


def _what_it_is(parts: SplitResult, good: tuple[str, ...]) -> str:
    path = parts.path
    lowered = path.lower()
    if any(lowered.rstrip("/") == known.lower() for known in good):
        return "the path ends with a slash or the URL with a query"
    if not path.strip("/"):
        return "the URL has only a host: this is the start page of the server"
    if lowered.endswith(".wsdl") or "wsdl" in parts.query.lower():
        return f"{path} is the description of the service (WSDL)"
    first = lowered.strip("/").partition("/")[0]
    if (known := dict(_OTHER_PATHS).get(first)) is not None:
        return f"{path} is {known}"
    return f"the path is {path}"
