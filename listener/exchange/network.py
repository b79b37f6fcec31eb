"""Where connections come from. A scheme of authentication says whether it wants a pool of them or one at a time.

Who issued a certificate that we do not trust: what an operator must know, and OpenSSL does not tell."""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import trio
from msgspec.structs import replace

from listener.ews.codes import Failure
from listener.ews.xml import excerpt
from listener.exchange.transport_errors import FOREIGN

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


if TYPE_CHECKING:
    from cryptography import x509

PATIENCE = 3.0


async def with_issuer(failure: Failure, url: str, network: Network) -> Failure:
    """The failure with the names in the certificate that the server shows. It is asked for once more, without
    verification; nothing is sent on that connection."""
    if failure.code != "TlsFailed" or network.transport is not None:
        return failure
    certificate = await shown(url, network)
    if certificate is None:
        return failure
    try:
        subject, issuer = (
            excerpt(name.rfc4514_string()) for name in (certificate.subject, certificate.issuer)
        )
    except ValueError:
        return failure
    return replace(
        failure, text=f"{failure.text}; the server shows a certificate for {subject}, issued by {issuer}"
    )


async def shown(url: str, network: Network) -> x509.Certificate | None:
    """The certificate that the server at the URL shows to everybody, None if it shows none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    seen: list[bytes] = []

    async def look(event: str, info: dict[str, Any]) -> None:
        if event.endswith("start_tls.complete"):
            stream = info["return_value"]
            tls = stream.get_extra_info("ssl_object")
            seen.append(tls.getpeercert(binary_form=True) or b"")
            await stream.aclose()
            raise _Seen

    with trio.move_on_after(PATIENCE):
        async with Network(tls=context, proxy=network.proxy).line() as way:
            with suppress(_Seen, *FOREIGN):
                await way.handle_async_request(httpx.Request("HEAD", url, extensions={"trace": look}))
    from cryptography import x509  # takes long to import

    try:
        return x509.load_der_x509_certificate(seen[-1]) if seen and seen[-1] else None
    except (ValueError, x509.InvalidVersion):
        return None


class _Seen(Exception):  # noqa: N818  (no error: the end of the look)
    """There is no need to go on."""
