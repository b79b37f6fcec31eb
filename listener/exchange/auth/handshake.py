"""Schemes that authenticate a connection in several legs: NTLM, and Negotiate (RFC 4559).

The rules:

1. Each request has a connection of its own, from its first byte to the end of the response body. No other request
   comes between the legs, and none shares a connection with a long stream.
2. A request is first sent without a token. On a connection that stays authenticated, that is all. Otherwise the 401
   names the schemes, and by then the server's certificate, which the channel binding needs, is known.
3. A connection may end between the legs, or the server may answer without continuing the handshake. The handshake
   then starts again, up to RESTARTS times, on a new connection if necessary. This applies only while no token has
   been sent that the server could count as a password attempt.
4. A 401 after that is a refusal and is not retried.
5. Some servers want a Kerberos token with each request: they send `Persistent-Auth: false`, or send a 401 again on
   the same connection. From then on, each request carries a token from the start.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

import httpx
import msgspec
import trio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from listener.ews.codes import ExchangeError, Failure, Verdict
from listener.ews.xml import excerpt
from listener.exchange.auth.scheme import Credentials, challenge_token, offered_schemes
from listener.exchange.network import KEEP_ALIVE, MAX_IDLE, Network

RESTARTS = 3
MAX_LEGS = 10
"""Legs of one handshake. NTLM has two; Kerberos has one, or three across forests."""
_MAX_PAGE = 256 * 1024
UNAUTHORIZED = 401


class Handshake(Protocol):
    """One handshake of a mechanism."""

    @property
    def header(self) -> str:
        """The scheme name before the token: NTLM or Negotiate."""
        ...

    @property
    def credentials_sent(self) -> bool:
        """Whether a token that proves the password has been made: from then on, a refusal counts as an attempt."""
        ...

    @property
    def one_leg(self) -> bool:
        """Whether the first token completes the handshake, so that it may be sent preemptively."""
        ...

    async def step(self, received: bytes | None, binding: bytes | None) -> bytes | None:
        """Return the next token; None if the handshake is complete. Raises ExchangeError if it fails locally."""
        ...

    def refusal(self, binding: bytes | None) -> Failure:
        """Return the failure for a server that refuses the handshake."""
        ...


class Mechanism(Protocol):
    """Begins handshakes."""

    @property
    def credentials(self) -> Credentials | None:
        """The username and password of the handshakes; None if there are none."""
        ...

    async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> Handshake:
        """Return a new handshake. Raises ExchangeError if the server offers no scheme that fits."""
        ...


class HandshakeTransport(httpx.AsyncBaseTransport):
    """One group's connections to one server. Each connection is authenticated separately."""

    def __init__(self, network: Network, mechanism: Mechanism) -> None:
        self._network = network
        self._mechanism = mechanism
        self._idle: list[_Connection] = []
        # The schemes of a server that wants a token with each request; None: it has not asked for that.
        self._preemptive_offer: list[str] | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        connection = await self._acquire()
        try:
            cookies: list[tuple[bytes, bytes]] = []
            response = await self._send_reloading_password(connection, request, cookies)
        except BaseException:
            await connection.close()
            raise
        return httpx.Response(
            response.status_code,
            headers=[*cookies, *response.headers.raw],
            stream=_ReleasingBody(response.stream, lambda: self._release(connection)),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            await connection.close()

    # --- connections

    async def _acquire(self) -> _Connection:
        """Return the connection that was used last, or a new one. Close those that have been idle for too long."""
        now = trio.current_time()
        expired = [each for each in self._idle if now - each.idle_since > KEEP_ALIVE]
        self._idle = [each for each in self._idle if now - each.idle_since <= KEEP_ALIVE]
        connection = self._idle.pop() if self._idle else _Connection(self._network.single_connection())
        for each in expired:
            await each.close()
        return connection

    async def _release(self, connection: _Connection) -> None:
        if self._closed or len(self._idle) >= MAX_IDLE:
            await connection.close()
        else:
            connection.idle_since = trio.current_time()
            self._idle.append(connection)

    # --- handshakes

    async def _send_reloading_password(
        self, connection: _Connection, request: httpx.Request, cookies: list[tuple[bytes, bytes]]
    ) -> httpx.Response:
        """Send the request. If the password is refused and has been changed since, send it again with the new one."""
        credentials = self._mechanism.credentials
        password = None if credentials is None else credentials.password
        try:
            return await self._send_authenticated(connection, request, cookies)
        except ExchangeError as error:
            refused = error.failure.verdict is Verdict.CREDENTIALS
            if (
                not refused
                or password is None
                or credentials is None
                or not await credentials.reload(password)
            ):
                raise
        return await self._send_authenticated(connection, request, cookies)

    async def _send_authenticated(
        self, connection: _Connection, request: httpx.Request, cookies: list[tuple[bytes, bytes]]
    ) -> httpx.Response:
        request.headers.pop("Authorization", None)
        authenticated_before = connection.authenticated
        if self._preemptive_offer is not None:
            response = await self._send_preemptively(connection, request, self._preemptive_offer, cookies)
            if response is not None:
                return response
        for _ in range(RESTARTS):
            response = await connection.send(request)
            if response.status_code != UNAUTHORIZED:
                return response
            offered = offered_schemes(response.headers)
            asked_again = authenticated_before is not None and authenticated_before is connection.stream
            cookies += await _drain(response)
            binding = channel_binding(connection.stream)
            handshake = await self._mechanism.begin(request.url, offered, binding)
            if handshake.one_leg and asked_again:
                self._preemptive_offer = offered
            final = await self._run_handshake(connection, request, handshake, binding, cookies)
            if final is not None:
                connection.authenticated = connection.stream
                if handshake.one_leg and final.headers.get("Persistent-Auth", "").lower() == "false":
                    self._preemptive_offer = offered
                return final
        raise ExchangeError(Failure(code="HandshakeBroken", text=HANDSHAKE_BROKEN))

    async def _send_preemptively(
        self,
        connection: _Connection,
        request: httpx.Request,
        offered: list[str],
        cookies: list[tuple[bytes, bytes]],
    ) -> httpx.Response | None:
        """Send the request with a token before the server asks; return None if no token can be made yet."""
        if connection.stream is None:
            return None  # the certificate is not known yet
        binding = channel_binding(connection.stream)
        handshake = await self._mechanism.begin(request.url, offered, binding)
        if not handshake.one_leg:
            return None
        return await self._run_handshake(connection, request, handshake, binding, cookies)

    async def _run_handshake(
        self,
        connection: _Connection,
        request: httpx.Request,
        handshake: Handshake,
        binding: bytes | None,
        cookies: list[tuple[bytes, bytes]],
    ) -> httpx.Response | None:
        """Return the response after all legs; None if the handshake must start again.

        Raises ExchangeError if the server refuses the handshake.
        """
        received: bytes | None = None
        first_stream: Any = None
        diagnostics = ""
        legs = 0
        try:
            while token := await handshake.step(received, binding):
                legs += 1
                if legs > MAX_LEGS:
                    text = f"the server has not completed the handshake after {MAX_LEGS} legs"
                    raise ExchangeError(Failure(code="HandshakeBroken", text=text))
                request.headers["Authorization"] = f"{handshake.header} {b64encode(token).decode()}"
                try:
                    response = await connection.send(request)
                except (httpx.NetworkError, httpx.RemoteProtocolError):
                    if handshake.credentials_sent:
                        raise  # the server may have executed the request
                    return None
                if response.status_code != UNAUTHORIZED:
                    return response
                diagnostics = excerpt(response.headers.get("x-ms-diagnostics", ""))
                cookies += await _drain(response)
                reconnected = channel_binding(connection.stream) != binding or (
                    first_stream and connection.stream is not first_stream
                )
                if reconnected or (not handshake.credentials_sent and _closes(response)):
                    return None  # this leg, or the next one, is on a connection without the earlier legs
                received = challenge_token(response.headers, handshake.header)
                if received is None:
                    if not handshake.credentials_sent:
                        return None
                    break
                first_stream = connection.stream
            failure = handshake.refusal(binding)
            text = "; ".join(filter(None, [failure.text, diagnostics]))
            raise ExchangeError(msgspec.structs.replace(failure, text=text))
        finally:
            request.headers.pop("Authorization", None)


class _Connection:
    """One connection at a time, and one request at a time on it."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self.stream: Any = None  # httpcore's network stream of the latest request
        self.authenticated: Any = None  # the stream that a handshake has authenticated
        self.idle_since = 0.0

    async def send(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        self.stream = response.extensions.get("network_stream")
        return response

    async def close(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await self._transport.aclose()


class _ReleasingBody(httpx.AsyncByteStream):
    """A response body that releases its connection when it is closed."""

    def __init__(self, inner: Any, release: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._release: Callable[[], Awaitable[None]] | None = release

    def __aiter__(self) -> AsyncIterator[bytes]:
        chunks: AsyncIterator[bytes] = self._inner.__aiter__()
        return chunks

    async def aclose(self) -> None:
        await self._inner.aclose()
        release, self._release = self._release, None
        if release is not None:
            await release()


def _closes(response: httpx.Response) -> bool:
    return "close" in response.headers.get("Connection", "").lower()


async def _drain(response: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Read a 401 to its end, so that its connection can be used again. Return its Set-Cookie headers.

    Cookies of a 401 belong to the group, as those of every response do.
    """
    length, chunks = 0, aiter(response.stream)  # type: ignore[arg-type]  # httpx: of a transport for async
    try:
        async for chunk in chunks:
            length += len(chunk)
            if length > _MAX_PAGE:
                break
    except httpx.TransportError:
        pass  # the connection is gone, and the next leg opens another one
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await response.aclose()
            # Exhaust httpx's nested generators here, so that none is left to the garbage collector.
            with suppress(httpx.HTTPError, httpx.StreamError):
                async for _ in chunks:
                    pass
    return [(name, value) for name, value in response.headers.raw if name.lower() == b"set-cookie"]


HANDSHAKE_BROKEN = (
    f"the server closed the connection or sent no usable token, {RESTARTS} times in the middle of a handshake: NTLM "
    "and Negotiate fail behind a proxy or load balancer that does not keep each client on its own connection"
)


# --- channel binding: ties a handshake to its TLS connection (Extended Protection)

_WEAK_HASHES = (hashes.MD5, hashes.SHA1)


def channel_binding(stream: Any) -> bytes | None:
    """Return the `tls-server-end-point` binding of a network stream of httpcore; None if it does not use TLS."""
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    return None if certificate is None else certificate_binding(certificate)


@lru_cache(maxsize=64)
def certificate_binding(der: bytes) -> bytes:
    """Return the `tls-server-end-point` binding of a certificate (RFC 5929 section 4.1).

    It is the certificate's hash, by the hash function of its signature. SHA-256 replaces MD5 and SHA-1, and is used
    where the signature has no hash function of its own.
    """
    try:
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError, x509.InvalidVersion):
        algorithm = None  # OpenSSL accepts certificates that this parser does not
    if algorithm is None or isinstance(algorithm, _WEAK_HASHES):
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(der)
    return b"tls-server-end-point:" + digest.finalize()
