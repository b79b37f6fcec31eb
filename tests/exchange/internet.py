"""A small internet for tests: scripted https hosts behind a CONNECT proxy, over real sockets."""

import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import h11
import httpx
import trio
import trustme

from listener.config.secrets import Secret
from listener.exchange.auth import Accounts, Basic, Credentials
from listener.exchange.client import Access
from listener.exchange.network import Network
from listener.exchange.throttle import Throttles

Transport = trio.SSLStream[trio.SocketStream]


class Asked(NamedTuple):
    """One received request. Header names are in lower case."""

    url: str
    headers: dict[str, str]
    body: bytes


class Page(NamedTuple):
    """One response."""

    status: int
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()


Answer = Callable[[Asked], Page]


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


@dataclass
class Internet:
    """The hosts of an internet. `pages` has the response for each URL; other URLs of the same hosts answer 404.

    A host without pages refuses connections. A host in `untrusted` has a certificate of an unknown authority.
    """

    pages: dict[str, Answer | Page] = field(default_factory=dict)
    untrusted: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    connects: list[str] = field(default_factory=list)

    @property
    def urls(self) -> list[str]:
        return [asked.url for asked in self.asked]

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            # The client may close without notice, or reject the certificate.
            with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                await self._tunnel(stream)

    async def _tunnel(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        method, target = head.split()[:2]
        if method == b"GET":
            await self._answer_http(stream, head)
            return
        host, _, port = target.decode().partition(":")
        self.connects.append(host)
        if not any(
            url.startswith("https:") and httpx.URL(url).raw_host.decode() == host for url in self.pages
        ):
            await stream.send_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        await stream.send_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority = trustme.CA() if host in self.untrusted else _authority()
        authority.issue_cert(host).configure_cert(context)
        await self._answer_https(
            trio.SSLStream(stream, context, server_side=True, https_compatible=True),
            host if port == "443" else f"{host}:{port}",
        )

    async def _answer_http(self, stream: trio.SocketStream, head: bytes) -> None:
        """Answer a plain http request, which names the whole URL to the proxy."""
        http = h11.Connection(h11.SERVER)
        http.receive_data(head)
        request = http.next_event()
        assert isinstance(request, h11.Request)
        headers = {name.decode(): value.decode() for name, value in request.headers}
        asked = Asked(request.target.decode(), headers, b"")
        self.asked.append(asked)
        page = self.pages.get(asked.url, Page(502))
        assert isinstance(page, Page)
        answer = [("Content-Length", str(len(page.body))), ("Connection", "close"), *page.headers]
        sent = (
            h11.Response(status_code=page.status, headers=answer),
            h11.Data(data=page.body),
            h11.EndOfMessage(),
        )
        await stream.send_all(b"".join(http.send(part) or b"" for part in sent))

    async def _answer_https(self, stream: Transport, host: str) -> None:
        http = h11.Connection(h11.SERVER)
        events: deque[h11.Event] = deque()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some()))
                continue
            assert isinstance(event, h11.Event)
            if isinstance(event, h11.ConnectionClosed):
                return
            events.append(event)
            if not isinstance(event, h11.EndOfMessage):
                continue
            request = events.popleft()
            assert isinstance(request, h11.Request)
            asked = Asked(
                f"https://{host}{request.target.decode()}",
                {name.decode(): value.decode() for name, value in request.headers},
                b"".join(bytes(part.data) for part in events if isinstance(part, h11.Data)),
            )
            events.clear()
            self.asked.append(asked)
            page = self.pages.get(asked.url, Page(404))
            if not isinstance(page, Page):
                page = page(asked)
            headers = [*page.headers, ("Content-Length", str(len(page.body)))]
            sent: list[h11.Event] = [
                h11.Response(status_code=page.status, headers=headers),
                h11.Data(data=page.body),
                h11.EndOfMessage(),
            ]
            await stream.send_all(b"".join(http.send(part) or b"" for part in sent))
            http.start_next_cycle()


@asynccontextmanager
async def connected(internet: Internet) -> AsyncIterator[Access]:
    """Yield an Access that reaches this internet."""
    context = ssl.create_default_context()
    _authority().configure_trust(context)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, internet.serve, listeners)
        yield Access(
            auth=Accounts.single(Basic(Credentials("svc", Secret("secret")))),
            throttles=Throttles(10),
            user_agent="test/1",
            tls=context,
            proxy=httpx.Proxy(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"),
        )
        nursery.cancel_scope.cancel()


def network(server: Callable[[httpx.Request], httpx.Response]) -> Network:
    """Return a network on which `server` answers every request."""
    return Network(tls=ssl.create_default_context(), transport=httpx.MockTransport(server))
