"""Connections: TLS, proxy, connection pools, and the issuer of a certificate that is not trusted.

An authentication scheme chooses between a pool of connections and a single one.
"""

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
from listener.exchange.transport_errors import LIBRARY_ERRORS

if TYPE_CHECKING:
    from cryptography import x509

KEEP_ALIVE = 60.0
"""Seconds after which an idle connection is closed."""
MAX_IDLE = 10
"""Idle connections that one group keeps open."""
CERTIFICATE_TIMEOUT = 3.0
"""Seconds for fetching a certificate that is not trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How to open connections. `transport` replaces the network in tests."""

    tls: ssl.SSLContext
    proxy: httpx.Proxy | None = None
    transport: httpx.AsyncBaseTransport | None = None

    def pool(self) -> httpx.AsyncBaseTransport:
        """Return a transport with as many connections as there are requests at the same time."""
        return self._open(httpx.Limits(max_keepalive_connections=MAX_IDLE, keepalive_expiry=KEEP_ALIVE))

    def single_connection(self) -> httpx.AsyncBaseTransport:
        """Return a transport with one connection at a time, which is opened again after it has ended."""
        return self._open(httpx.Limits(max_connections=1, keepalive_expiry=KEEP_ALIVE))

    def _open(self, limits: httpx.Limits) -> httpx.AsyncBaseTransport:
        return self.transport or httpx.AsyncHTTPTransport(
            verify=self.tls, proxy=self.proxy, limits=limits, trust_env=False
        )


async def hide_location(response: httpx.Response) -> None:
    """Response hook for httpx.AsyncClient: move the Location header to a place where only location_of() finds it.

    httpx parses each Location, even without following it, and raises for some.
    """
    if "location" in response.headers:
        response.extensions["location"] = response.headers.pop("location")


def location_of(response: httpx.Response) -> str | None:
    """Return the Location header that hide_location() has moved."""
    location: str | None = response.extensions.get("location")
    return location


async def add_issuer(failure: Failure, url: str, network: Network) -> Failure:
    """Return a `TlsFailed` failure with the subject and the issuer of the server's certificate added to its text.

    OpenSSL does not report them. The certificate is fetched over a second connection, without verification; no
    request is sent on it. Every other failure is returned unchanged.
    """
    if failure.code != "TlsFailed" or network.transport is not None:
        return failure
    certificate = await server_certificate(url, network)
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


async def server_certificate(url: str, network: Network) -> x509.Certificate | None:
    """Return the certificate of the server at the URL without verifying it; None if it cannot be fetched."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    certificates: list[bytes] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith("start_tls.complete"):
            stream = info["return_value"]
            tls = stream.get_extra_info("ssl_object")
            certificates.append(tls.getpeercert(binary_form=True) or b"")
            await stream.aclose()
            raise _CertificateSeen

    with trio.move_on_after(CERTIFICATE_TIMEOUT):
        async with Network(tls=context, proxy=network.proxy).single_connection() as transport:
            with suppress(_CertificateSeen, *LIBRARY_ERRORS):
                request = httpx.Request("HEAD", url, extensions={"trace": trace})
                await transport.handle_async_request(request)
    from cryptography import x509  # takes long to import

    try:
        return x509.load_der_x509_certificate(certificates[-1]) if certificates and certificates[-1] else None
    except (ValueError, x509.InvalidVersion):
        return None


class _CertificateSeen(Exception):  # noqa: N818  (not an error)
    """Ends the connection before the request is sent."""
