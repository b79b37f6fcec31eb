"""The server over real loopback connections."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import trio
import trustme  # noqa: F401  (its first import takes longer than a test may)

from listener.simulator.server import Running, serve
from listener.simulator.settings import Settings
from tests.simulator.client import basic, envelope, envelopes, stream_body, subscribe_body

QUIET = Settings(rate=0, mailboxes=5)


@asynccontextmanager
async def simulator(settings: Settings = QUIET) -> AsyncIterator[Running]:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(serve, settings)
            yield running
            nursery.cancel_scope.cancel()


class HttpClient:
    """A client connection with h11."""

    def __init__(
        self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], running: Running
    ) -> None:
        self.stream = stream
        self.running = running
        self.http = h11.Connection(h11.CLIENT)

    async def event(self) -> h11.Event:
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(bytes(await self.stream.receive_some(65536)))
            else:
                assert not isinstance(event, type)
                return event

    async def ask(
        self, body: bytes, path: str = "/EWS/Exchange.asmx", authorization: str | None = None, **headers: str
    ) -> h11.Response:
        """Send a request and return the head of its reply."""
        if authorization is None:
            authorization = basic(self.running.user, self.running.password)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        head = {
            "Host": "localhost",
            "Authorization": authorization,
            "Content-Length": str(len(body)),
            **named,
        }
        request = h11.Request(method="POST", target=path, headers=list(head.items()))
        data = b"".join(self.http.send(e) or b"" for e in (request, h11.Data(data=body), h11.EndOfMessage()))
        await self.stream.send_all(data)
        response = await self.event()
        while isinstance(response, h11.InformationalResponse):
            response = await self.event()
        assert isinstance(response, h11.Response)
        return response

    async def body(self) -> bytes:
        """Return the complete body of the reply. The connection is then ready for the next request."""
        data = b""
        while True:
            event = await self.event()
            if isinstance(event, h11.EndOfMessage):
                self.http.start_next_cycle()
                return data
            assert isinstance(event, h11.Data)
            data += event.data

    async def until(self, mark: bytes) -> bytes:
        """Return the body up to this mark."""
        data = b""
        while mark not in data:
            event = await self.event()
            assert isinstance(event, h11.Data)
            data += event.data
        return data

    async def subscribe(self) -> tuple[str, str]:
        """Subscribe to the first mailbox. Return its address and the subscription id."""
        address = next(iter(self.running.exchange.directory)).address
        response = await self.ask(envelope(subscribe_body(), impersonate=address), X_AnchorMailbox=address)
        assert response.status_code == 200
        (root,) = envelopes(await self.body())
        id_ = root.findtext(".//{*}SubscriptionId")
        assert id_
        return address, id_

    async def open_stream(self, address: str, id_: str) -> None:
        body = envelope(stream_body([id_], minutes=1), impersonate=address)
        response = await self.ask(body, X_AnchorMailbox=address)
        assert response.status_code == 200
        assert (b"transfer-encoding", b"chunked") in list(response.headers)


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[HttpClient]:
    port = int(running.ews_url.split("/")[2].rpartition(":")[2])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield HttpClient(stream, running)


async def streams_left(running: Running, count: int) -> None:
    """Wait until the server has this many open streams."""
    while len(running.exchange.streams) != count:
        await trio.lowlevel.checkpoint()


async def test_several_requests_on_one_connection() -> None:
    async with simulator() as running, connected(running) as client:
        address, id_ = await client.subscribe()
        await client.open_stream(address, id_)
        assert b"<m:ConnectionStatus>OK</m:ConnectionStatus>" in await client.until(b"</Envelope>")
        async with connected(running) as other:
            order = {"mailbox": address, "kind": "NewMailEvent", "count": 2}
            await other.ask(json.dumps(order).encode(), "/control/events", authorization="")
            assert len(json.loads(await other.body())["events"]) == 6
        assert (await client.until(b"</Envelope>")).count(b"<t:NewMailEvent>") == 2


async def test_disconnected_client_releases_its_stream() -> None:
    async with simulator() as running, connected(running) as first:
        address, id_ = await first.subscribe()
        async with connected(running) as second:
            await second.open_stream(address, id_)
            await second.until(b"</Envelope>")
            await streams_left(running, 1)
        await streams_left(running, 0)
        assert running.exchange.throttle.streams_by_account() == {}
        assert running.control.state()["mailboxes_streaming"] == 0
        # The subscription still exists for the next stream, on any connection.
        await first.open_stream(address, id_)
        await first.until(b"</Envelope>")


async def test_request_after_the_end_of_a_stream() -> None:
    async with simulator() as running, connected(running) as client:
        address, id_ = await client.subscribe()
        body = envelope(stream_body([id_, "bm9uc2Vuc2U="]), impersonate=address)
        await client.ask(body, X_AnchorMailbox=address)
        assert b"ErrorSubscriptionNotFound" in await client.body()
        await client.subscribe()


async def test_wrong_password() -> None:
    async with simulator() as running, connected(running) as client:
        for authorization in ("Basic bm9ib2R5Om5vdGhpbmc=", ""):
            response = await client.ask(b"", authorization=authorization)
            assert response.status_code == 401
            assert (b"www-authenticate", b'Basic realm="127.0.0.1"') in list(response.headers)
            await client.body()
        assert running.exchange.requests == {("-", 401): 2}


async def test_expect_100_continue() -> None:
    async with simulator() as running, connected(running) as client:
        response = await client.ask(envelope("<m:PlayOnPhone/>"), Expect="100-continue")
        assert response.status_code == 500


async def test_connection_close() -> None:
    async with simulator() as running, connected(running) as client:
        await client.ask(envelope("<m:PlayOnPhone/>"), Connection="close")
        while not isinstance(await client.event(), h11.EndOfMessage):
            pass
        assert await client.stream.receive_some(1) == b""


async def test_too_large_body_is_refused() -> None:
    async with simulator() as running, connected(running) as client:
        response = await client.ask(b" " * ((4 << 20) + 1))
        assert response.status_code == 413


async def test_non_http_client_ends_only_its_own_connection() -> None:
    async with simulator() as running:
        async with connected(running) as rude:
            await rude.stream.send_all(b"\x16\x03\x01 hello\r\n\r\n")
            assert await rude.stream.receive_some(100) == b""
        async with connected(running) as client:
            await client.subscribe()


async def test_tls() -> None:
    async with simulator(Settings(rate=0, mailboxes=5, tls=True)) as running:
        assert running.ews_url.startswith("https://127.0.0.1:")
        assert running.ca_pem
        context = ssl.create_default_context(cadata=running.ca_pem.decode())
        for name in ("127.0.0.1", "localhost"):
            async with connected(running) as plain:
                assert isinstance(plain.stream, trio.SocketStream)
                secure = trio.SSLStream(plain.stream, context, server_hostname=name, https_compatible=True)
                client = HttpClient(secure, running)
                address, id_ = await client.subscribe()
                await client.open_stream(address, id_)
                await client.until(b"</Envelope>")
        async with connected(running) as plain:
            # Plain HTTP on the TLS port fails, and the server continues.
            await plain.stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            await plain.stream.receive_some(1000)


async def test_traffic_is_written_to_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    async with (
        simulator(Settings(rate=500, mailboxes=5, ledger=path)) as running,
        connected(running) as client,
    ):
        address, id_ = await client.subscribe()
        await client.open_stream(address, id_)
        data = await client.until(b"NewMailEvent")
        assert b"CreatedEvent" in data
        running.traffic.set_rate(0)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["seq"] for line in lines] == list(range(1, running.exchange.ledger.count + 1))


async def test_a_virtual_hour_without_a_client(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        running: Running = await nursery.start(serve, Settings(rate=1, mailboxes=5))
        await trio.sleep(3600)
        assert 3590 <= running.exchange.ledger.count <= 3605
        nursery.cancel_scope.cancel()
