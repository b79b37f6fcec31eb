"""A server that requires NTLM, on real sockets. It can behave like servers and proxies that break handshakes."""

import os
import ssl
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h11
import spnego
import trio
import trustme
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError

from listener.exchange.auth.handshake import certificate_binding

DOMAIN, USER, PASSWORD = "CONTOSO", "svc-listener", "Pw-correct-horse"
Wire = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@dataclass
class Acceptor:
    """`habits` has one set of options for each connection in order; the last one applies to all further connections.

    close_401: send `Connection: close` with the 401 to a request without a token. close_challenge: the same with the
    challenge. silent_challenge: send a 401 without a token in place of the challenge. reset: end the connection at
    the first token. each_request: the connection does not stay authenticated. cookie: set a cookie with the 401.
    """

    schemes: tuple[str, ...] = ("NTLM",)
    protection: bool = False
    tls: bool = True
    habits: list[set[str]] = field(default_factory=lambda: [set()])
    requests: list[tuple[int, str, str]] = field(default_factory=list)
    """Connection number, scheme of Authorization, and path of each request."""
    tokens: Counter[str] = field(default_factory=Counter)
    bodies: list[bytes] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    connections: int = 0
    hold: trio.Event | None = None
    url: str = ""

    @cached_property
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @cached_property
    def certificate(self) -> trustme.LeafCert:
        return self.authority.issue_cert("127.0.0.1")

    @property
    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    @asynccontextmanager
    async def open(self, folder: Path) -> AsyncIterator["Acceptor"]:
        users = folder / "users"
        users.write_text(f"{DOMAIN}:{USER}:{PASSWORD}\n")
        before = os.environ.get("NTLM_USER_FILE")
        os.environ["NTLM_USER_FILE"] = str(users)
        try:
            async with trio.open_nursery() as nursery:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                port = listener.socket.getsockname()[1]
                self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{port}/EWS/Exchange.asmx"
                nursery.start_soon(trio.serve_listeners, self._serve, [listener])
                yield self
                nursery.cancel_scope.cancel()
        finally:
            if before is None:
                del os.environ["NTLM_USER_FILE"]
            else:
                os.environ["NTLM_USER_FILE"] = before

    async def _serve(self, raw: trio.SocketStream) -> None:
        self.connections += 1
        number = self.connections
        habits = self.habits[min(number, len(self.habits)) - 1]
        wire: Wire = raw
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.certificate.configure_cert(context)
            wire = trio.SSLStream(raw, context, server_side=True, https_compatible=True)
        async with wire:
            with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                await _Connection(self, wire, number, habits).run()


class _Connection:
    def __init__(self, acceptor: Acceptor, wire: Wire, number: int, habits: set[str]) -> None:
        self._acceptor = acceptor
        self._wire = wire
        self._number = number
        self._habits = habits
        self._context: Any = None
        self._user: str | None = None
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        while (asked := await self._request()) is not None:
            request, body = asked
            headers = {name.decode(): value.decode() for name, value in request.headers}
            scheme, _, encoded = headers.get("authorization", "").partition(" ")
            self._acceptor.requests.append((self._number, scheme, request.target.decode()))
            self._acceptor.cookies.append(headers.get("cookie", ""))
            token = b64decode(encoded)
            if token:
                self._acceptor.tokens[scheme] += 1
                if "reset" in self._habits:
                    return
            challenges = None if self._user and not token else self._challenges(scheme, token)
            if challenges is None:
                self._acceptor.served.append(self._number)
                self._acceptor.bodies.append(body)
                if self._acceptor.hold is not None:
                    await self._acceptor.hold.wait()
                await self._answer(200, [("Content-Type", "text/xml")], b"<ok/>")
                if "each_request" in self._habits:
                    self._user = None
            else:
                extra = [("Set-Cookie", "balancer=B7; path=/")] if "cookie" in self._habits else []
                close = "close_challenge" if token else "close_401"
                extra += [("Connection", "close")] if close in self._habits else []
                await self._answer(401, [*challenges, *extra], b"<html>401</html>")
            if self._http.our_state is h11.MUST_CLOSE:
                return
            self._http.start_next_cycle()

    def _challenges(self, scheme: str, token: bytes) -> list[tuple[str, str]] | None:
        """Return the challenges of a 401; None if the user is authenticated."""
        offers = [("WWW-Authenticate", name) for name in self._acceptor.schemes]
        if not token:
            return offers
        try:
            if self._context is None:
                self._context = spnego.server(protocol="ntlm", channel_bindings=self._bindings())
            answer = self._context.step(token)
        except (SpnegoError, ValueError):
            self._context = None
            return offers
        if self._context.complete:
            self._user, self._context = self._context.client_principal, None
            return None
        if "silent_challenge" in self._habits:
            return offers
        return [("WWW-Authenticate", f"{scheme} {b64encode(answer).decode()}")]

    def _bindings(self) -> GssChannelBindings | None:
        if not self._acceptor.protection:
            return None
        pem = self._acceptor.certificate.cert_chain_pems[0].bytes()
        return GssChannelBindings(
            application_data=certificate_binding(ssl.PEM_cert_to_DER_cert(pem.decode()))
        )

    async def _request(self) -> tuple[h11.Request, bytes] | None:
        events: deque[Any] = deque()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(bytes(await self._wire.receive_some()))
            elif isinstance(event, h11.ConnectionClosed):
                return None
            elif isinstance(event, h11.EndOfMessage):
                return events.popleft(), b"".join(bytes(part.data) for part in events)
            else:
                events.append(event)

    async def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        parts: list[Any] = [
            h11.Response(status_code=status, headers=[*headers, ("Content-Length", str(len(body)))]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        await self._wire.send_all(b"".join(self._http.send(part) or b"" for part in parts))
