"""Schemes that authenticate a connection in several legs: NTLM, and Negotiate (RFC 4559).

The rules:

1. Each request has a connection for itself, from its first byte to the end of the answer's body. No other request
   comes between the legs, and none shares a connection with a long stream.
2. A request is first sent as it is. On a connection that stays authenticated that is all; else the 401 that answers
   names the schemes, and the certificate for the channel binding is known by then.
3. A connection may end between the legs, or the server may answer without going on: as long as nothing was shown
   that counts as a try with the password, the handshake begins anew, on a new connection if need be, RESTARTS times.
4. A 401 after that is a refusal: it is not tried again.
5. Where a server wants a Kerberos token with each request (it says `Persistent-Auth: false`, or asks again on the
   same connection), it gets one unasked from then on.


Channel binding: ties a handshake to the TLS connection that it is made on (Extended Protection)."""

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

from listener.errors import ExchangeError
from listener.ews.codes import Failure, Verdict
from listener.ews.xml import excerpt
from listener.exchange.auth.scheme import Credentials, challenge_token, offered_schemes
from listener.exchange.network import KEEP_ALIVE, MOST_IDLE, Network

RESTARTS = 3
MOST_LEGS = 10
"""Legs of one handshake. NTLM has two; Kerberos one, or three across forests."""
_LARGEST_PAGE = 256 * 1024
UNAUTHORIZED = 401


class Handshake(Protocol):
    """One handshake of a mechanism."""

    @property
    def header(self) -> str:
        """What stands before the token: NTLM or Negotiate."""
        ...

    @property
    def shown(self) -> bool:
        """Whether a token has been made that proves who we are: to be refused after that is a try that counts."""
        ...

    @property
    def one_leg(self) -> bool:
        """Whether the first token is all, so that it may be sent unasked."""
        ...

    async def step(self, received: bytes | None, binding: bytes | None) -> bytes | None:
        """The next token; None if nothing more is to be said. ExchangeError: it is for us that this fails."""
        ...

    def refused(self, binding: bytes | None) -> Failure:
        """What it means that the server says no."""
        ...


class Mechanism(Protocol):
    """Begins handshakes."""

    @property
    def credentials(self) -> Credentials | None:
        """The password that they use, None if there is none."""
        ...

    async def begin(self, url: httpx.URL, offered: list[str], binding: bytes | None) -> Handshake:
        """Raises ExchangeError if none of the schemes that the server offered will do."""
        ...


class HandshakeTransport(httpx.AsyncBaseTransport):
    """One group's connections to one server, each authenticated for itself."""

    def __init__(self, network: Network, mechanism: Mechanism) -> None:
        self._network = network
        self._mechanism = mechanism
        self._idle: list[_Line] = []
        self._each_request: list[str] | None = None  # what the server offers that wants a token each time
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        line = await self._take()
        try:
            cookies: list[tuple[bytes, bytes]] = []
            response = await self._with_a_password(line, request, cookies)
        except BaseException:
            await line.close()
            raise
        return httpx.Response(
            response.status_code,
            headers=[*cookies, *response.headers.raw],
            stream=_Body(response.stream, lambda: self._give_back(line)),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        idle, self._idle, self._closed = self._idle, [], True
        for line in idle:
            await line.close()

    # --- connections

    async def _take(self) -> _Line:
        """The connection that was used last, or a new one; those that have been idle for long are closed."""
        now = trio.current_time()
        old = [line for line in self._idle if now - line.since > KEEP_ALIVE]
        self._idle = [line for line in self._idle if now - line.since <= KEEP_ALIVE]
        line = self._idle.pop() if self._idle else _Line(self._network.line())
        for each in old:
            await each.close()
        return line

    async def _give_back(self, line: _Line) -> None:
        if self._closed or len(self._idle) >= MOST_IDLE:
            await line.close()
        else:
            line.since = trio.current_time()
            self._idle.append(line)

    # --- handshakes

    async def _with_a_password(
        self, line: _Line, request: httpx.Request, cookies: list[tuple[bytes, bytes]]
    ) -> httpx.Response:
        """With the one that we have, and if it is refused, with one that has taken its place."""
        credentials = self._mechanism.credentials
        password = None if credentials is None else credentials.password
        try:
            return await self._authenticated(line, request, cookies)
        except ExchangeError as error:
            refused = error.failure.verdict is Verdict.CREDENTIALS
            if (
                not refused
                or password is None
                or credentials is None
                or not await credentials.renewed(password)
            ):
                raise
        return await self._authenticated(line, request, cookies)

    async def _authenticated(
        self, line: _Line, request: httpx.Request, cookies: list[tuple[bytes, bytes]]
    ) -> httpx.Response:
        request.headers.pop("Authorization", None)
        known = line.authenticated
        if self._each_request is not None:
            response = await self._unasked(line, request, self._each_request, cookies)
            if response is not None:
                return response
        for _ in range(RESTARTS):
            response = await line.send(request)
            if response.status_code != UNAUTHORIZED:
                return response
            offered = offered_schemes(response.headers)
            asked_again = known is not None and known is line.connection
            cookies += await _put_aside(response)
            binding = end_point(line.connection)
            handshake = await self._mechanism.begin(request.url, offered, binding)
            if handshake.one_leg and asked_again:
                self._each_request = offered
            done = await self._shake(line, request, handshake, binding, cookies)
            if done is not None:
                line.authenticated = line.connection
                if handshake.one_leg and done.headers.get("Persistent-Auth", "").lower() == "false":
                    self._each_request = offered
                return done
        raise ExchangeError(Failure(code="HandshakeBroken", text=BROKEN))

    async def _unasked(
        self, line: _Line, request: httpx.Request, offered: list[str], cookies: list[tuple[bytes, bytes]]
    ) -> httpx.Response | None:
        """What comes of a request with a token that nobody has asked for yet, None if there is none to send."""
        if line.connection is None:
            return None  # the certificate is not known yet
        binding = end_point(line.connection)
        handshake = await self._mechanism.begin(request.url, offered, binding)
        return await self._shake(line, request, handshake, binding, cookies) if handshake.one_leg else None

    async def _shake(
        self,
        line: _Line,
        request: httpx.Request,
        handshake: Handshake,
        binding: bytes | None,
        cookies: list[tuple[bytes, bytes]],
    ) -> httpx.Response | None:
        """The answer after all legs, None if the handshake must begin anew. ExchangeError: it is a refusal."""
        received: bytes | None = None
        started_at: Any = None
        diagnostics = ""
        legs = 0
        try:
            while token := await handshake.step(received, binding):
                legs += 1
                if legs > MOST_LEGS:
                    text = f"the server has not come to an end in {MOST_LEGS} legs of a handshake"
                    raise ExchangeError(Failure(code="HandshakeBroken", text=text))
                request.headers["Authorization"] = f"{handshake.header} {b64encode(token).decode()}"
                try:
                    response = await line.send(request)
                except (httpx.NetworkError, httpx.RemoteProtocolError):
                    if handshake.shown:
                        raise  # the request may have been carried out
                    return None
                if response.status_code != UNAUTHORIZED:
                    return response
                diagnostics = excerpt(response.headers.get("x-ms-diagnostics", ""))
                cookies += await _put_aside(response)
                elsewhere = end_point(line.connection) != binding or (
                    started_at and line.connection is not started_at
                )
                if elsewhere or (not handshake.shown and _closes(response)):
                    return (
                        None  # this leg, or the next one, is on a connection that knows nothing of the others
                    )
                received = challenge_token(response.headers, handshake.header)
                if received is None:
                    if not handshake.shown:
                        return None
                    break
                started_at = line.connection
            failure = handshake.refused(binding)
            text = "; ".join(filter(None, [failure.text, diagnostics]))
            raise ExchangeError(msgspec.structs.replace(failure, text=text))
        finally:
            request.headers.pop("Authorization", None)


class _Line:
    """One connection at a time, and one request at a time on it."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self.connection: Any = None  # httpcore's stream that was used last
        self.authenticated: Any = None
        self.since = 0.0

    async def send(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        self.connection = response.extensions.get("network_stream")
        return response

    async def close(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await self._transport.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of an answer; when it is closed, its connection is free for the next request."""

    def __init__(self, inner: Any, free: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._free: Callable[[], Awaitable[None]] | None = free

    def __aiter__(self) -> AsyncIterator[bytes]:
        chunks: AsyncIterator[bytes] = self._inner.__aiter__()
        return chunks

    async def aclose(self) -> None:
        await self._inner.aclose()
        free, self._free = self._free, None
        if free is not None:
            await free()


def _closes(response: httpx.Response) -> bool:
    return "close" in response.headers.get("Connection", "").lower()


async def _put_aside(response: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Reads a 401 to its end, so that its connection can go on; its cookies, which belong to the group."""
    length, chunks = 0, aiter(response.stream)  # type: ignore[arg-type]  # httpx: of a transport for async
    try:
        async for chunk in chunks:
            length += len(chunk)
            if length > _LARGEST_PAGE:
                break
    except httpx.TransportError:
        pass  # the connection is gone, and the next leg opens another one
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await response.aclose()
            # What is nested in there runs into its end, and nothing is left to the garbage collector.
            with suppress(httpx.HTTPError, httpx.StreamError):
                async for _ in chunks:
                    pass
    return [(name, value) for name, value in response.headers.raw if name.lower() == b"set-cookie"]


BROKEN = (
    f"the server has ended the connection, or said nothing to the point, {RESTARTS} times in the middle of a "
    "handshake: a proxy or load balancer that does not keep connections apart breaks NTLM and Negotiate"
)


_WEAK = (hashes.MD5, hashes.SHA1)


def end_point(stream: Any) -> bytes | None:
    """The `tls-server-end-point` of a connection of httpcore, None where it speaks no TLS."""
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    return None if certificate is None else of_certificate(certificate)


@lru_cache(maxsize=64)
def of_certificate(der: bytes) -> bytes:
    """RFC 5929 section 4.1: the certificate's hash, by the hash function of its signature; SHA-256 in place of MD5
    and SHA-1, and where the signature has no hash function of its own."""
    try:
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    except (
        UnsupportedAlgorithm,
        ValueError,
        x509.InvalidVersion,
    ):  # OpenSSL is less strict about certificates
        algorithm = None
    if algorithm is None or isinstance(algorithm, _WEAK):
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(der)
    return b"tls-server-end-point:" + digest.finalize()
