"""Where connections come from. A scheme of authentication says whether it wants a pool of them or one at a time."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import httpx

KEEP_ALIVE = 60.0
"""Seconds that an idle connection is kept."""
MOST_IDLE = 10
"""Idle connections that one group keeps."""


async def hide_location(response: httpx.Response) -> None:
    """A response hook for httpx.AsyncClient. httpx parses each Location, even if it is not to follow it, and raises
    for some; this keeps the text for location_of()."""
    if "location" in response.headers:
        response.extensions["location"] = response.headers.pop("location")


def location_of(response: httpx.Response) -> str | None:
    """The Location that hide_location() has kept."""
    location: str | None = response.extensions.get("location")
    return location


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The way out of this machine. `transport` takes its place in tests."""

    tls: ssl.SSLContext
    proxy: httpx.Proxy | None = None
    transport: httpx.AsyncBaseTransport | None = None

    def pool(self) -> httpx.AsyncBaseTransport:
        """As many connections as there are requests; a request gets any of them."""
        return self._open(httpx.Limits(max_keepalive_connections=MOST_IDLE, keepalive_expiry=KEEP_ALIVE))

    def line(self) -> httpx.AsyncBaseTransport:
        """One connection at a time, opened anew when it has ended."""
        return self._open(httpx.Limits(max_connections=1, keepalive_expiry=KEEP_ALIVE))

    def _open(self, limits: httpx.Limits) -> httpx.AsyncBaseTransport:
        return self.transport or httpx.AsyncHTTPTransport(
            verify=self.tls, proxy=self.proxy, limits=limits, trust_env=False
        )
