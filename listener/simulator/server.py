"""The socket: HTTP/1.1 on trio, plain or TLS, around an Exchange that knows nothing of it.

Streams are written in ticks of a few milliseconds, so that many events go out in one write. trio switches Nagle's
algorithm off.
"""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from random import Random
from typing import NamedTuple

import h11
import trio

from listener.simulator import faults
from listener.simulator.conditions import Conditions
from listener.simulator.control import Control
from listener.simulator.exchange import Exchange
from listener.simulator.front import CONTROL, Answer, entra_front, exchange_front
from listener.simulator.http import Reply, page
from listener.simulator.ledger import Ledger
from listener.simulator.listener_socket import ListenerSocket
from listener.simulator.response_writer import Gzipped, ResponseWriter, Transport
from listener.simulator.settings import Settings
from listener.simulator.subscriptions import Stream
from listener.simulator.traffic import Traffic

TICK = 0.003
"""How long a stream waits for further events before it writes, in seconds."""
_LARGEST_BODY = 4 << 20
_RECEIVE = 1 << 16
_EXPIRY_CHECK = 5.0
_STREAM_CHECK = 0.1
_SHORTEST_PULSE = 0.001
_STUMP = 40
"""How many bytes a body lacks that is cut in an envelope: less than any envelope has behind its last element."""


class Running(NamedTuple):
    """A server that accepts connections. `control_url` has a port of its own, which no fault touches; the doors for
    tests are below the other port, too. `login_url` is Entra ID, with a port of its own as well; None without OAuth.
    `ca_pem` is the certificate of its authority, None without TLS; the rest are the live parts, for tests in the same
    process."""

    ews_url: str
    autodiscover_url: str
    control_url: str
    login_url: str | None
    user: str
    password: str
    ca_pem: bytes | None
    exchange: Exchange
    traffic: Traffic
    control: Control


async def serve(
    settings: Settings, *, task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; the `Running` is handed over when connections are accepted.

    Its clock is the system's at the start, and trio's from there on: it runs under trio.testing.MockClock and
    takes no notice when somebody sets the system's clock. OSError: the port or the ledger cannot be opened.
    FaultError: the faults name what is not there.
    """
    offset = time.time() - trio.current_time()

    def clock() -> float:
        return trio.current_time() + offset

    with Ledger(settings.ledger) as ledger:
        exchange = Exchange(settings, ledger, clock())
        traffic = Traffic(list(exchange.directory), settings.rate, Random(f"traffic {settings.seed}"))
        control = Control(exchange, traffic, Random(f"control {settings.seed}"))
        listeners = await trio.open_tcp_listeners(settings.port, host=settings.host)
        port = listeners[0].socket.getsockname()[1]
        control_listeners = await trio.open_tcp_listeners(0, host=settings.host)
        control_port = control_listeners[0].socket.getsockname()[1]
        entra = exchange.gate.entra
        login_listeners = await trio.open_tcp_listeners(0, host=settings.host) if entra else []
        certificates = None
        if settings.tls:
            from listener.simulator.tls import Certificates  # takes long to import

            certificates = Certificates(settings.hostname)
        scheme = "https" if certificates else "http"
        exchange.base_url = f"{scheme}://{settings.hostname}:{port}"
        if entra:
            entra.exchange.add(exchange.base_url)
            entra.base_url = f"{scheme}://{settings.hostname}:{login_listeners[0].socket.getsockname()[1]}"

        async def handle(raw: trio.SocketStream) -> None:
            transport: Transport = raw
            at, shown = raw.socket.getsockname()[1], None
            if certificates:
                conditions = exchange.conditions
                if at == port and conditions.offloaded:
                    shown = certificates.offloaded()
                else:
                    shown = certificates.present(conditions.certificate if at == port else None)
                transport = trio.SSLStream(raw, shown.context, server_side=True, https_compatible=True)
            if entra and at not in (port, control_port):
                answer = entra_front(exchange, entra, clock)
            else:
                answer = exchange_front(exchange, control, clock, shown.certificate if shown else None)
            async with _hanging_up(transport):
                await _Connection(transport, exchange.conditions, answer, clock, offset).run()

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, handle, [*control_listeners, *login_listeners])
            nursery.start_soon(_pulse, exchange, traffic, clock, ListenerSocket(listeners, handle, nursery))
            task_status.started(
                Running(
                    ews_url=f"{exchange.base_url}/EWS/Exchange.asmx",
                    autodiscover_url=f"{exchange.base_url}/autodiscover/autodiscover.svc",
                    control_url=f"{scheme}://{settings.hostname}:{control_port}{CONTROL}",
                    login_url=entra.base_url if entra else None,
                    user=settings.user,
                    password=settings.password,
                    ca_pem=certificates.ca_pem if certificates else None,
                    exchange=exchange,
                    traffic=traffic,
                    control=control,
                )
            )


async def _pulse(
    exchange: Exchange, traffic: Traffic, clock: Callable[[], float], listener_socket: ListenerSocket
) -> None:
    """Let users do things, faults happen, and time pass."""
    chaos = exchange.chaos
    with closing(listener_socket):
        while True:
            changed = trio.Event()
            traffic.wake = chaos.wake = changed.set
            now = clock()
            exchange.publish(traffic.due(now))
            exchange.advance(now)
            outage = exchange.conditions.outage
            await listener_socket.set_open(wanted=outage is None or outage.how != "refuse")
            pause = min(traffic.interval, _EXPIRY_CHECK, max(chaos.deadline - now, _SHORTEST_PULSE))
            with trio.move_on_after(min(pause, _STREAM_CHECK) if chaos.waiting else pause):
                await changed.wait()


@asynccontextmanager
async def _hanging_up(transport: Transport) -> AsyncIterator[None]:
    """A peer that goes away at whatever moment, or does not speak HTTP, ends its own connection only."""
    try:
        yield
    except* (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
        pass
    finally:
        await trio.aclose_forcefully(transport)


_STRAY_BODY = b"<html><body>The connection was lost.</body></html>"
_STRAY = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_STRAY_BODY),
    _STRAY_BODY,
)


class _TooLarge(Exception):  # noqa: N818
    pass


class _Connection:
    """One client's connection: requests one after another, each with its reply."""

    def __init__(
        self,
        transport: Transport,
        conditions: Conditions,
        answer: Answer,
        clock: Callable[[], float],
        offset: float,
    ) -> None:
        self._transport = transport
        self._outlet = ResponseWriter(transport)
        self._conditions = conditions
        self._answer = answer
        self._clock = clock
        self._offset = offset
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        while True:
            try:
                received = await self._receive()
            except _TooLarge:
                await self._send_reply(page(413, "Request Entity Too Large"))
                return
            if received is None:
                break
            reply = self._reply(*received)
            try:
                if reply.delay:
                    await trio.sleep(reply.delay)
                await self._send_reply(reply)
            finally:
                if isinstance(reply.body, Stream):
                    reply.body.close(self._clock())
                reply.finish()
            if self._http.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                break
            self._http.start_next_cycle()

    def _reply(self, head: h11.Request, body: bytes) -> Reply:
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("latin-1"), _text(raw_value)
            headers[name] = f"{headers[name]}; {value}" if name in headers else value
        return self._answer(head.method.decode("latin-1"), head.target.decode("latin-1"), headers, body)

    # -- reading ---------------------------------------------------------------------------------------------

    async def _receive(self) -> tuple[h11.Request, bytes] | None:
        """The next request with its whole body; None at the end."""
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(bytes(await self._transport.receive_some(_RECEIVE)))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _LARGEST_BODY:
                    raise _TooLarge
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return head, bytes(body)
            else:
                return None

    # -- writing ---------------------------------------------------------------------------------------------

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join([self._http.send(event) or b"" for event in events])
        await self._outlet.send(data)

    async def _send_reply(self, reply: Reply) -> None:
        match reply.manner:
            case None:
                await self._send_well(reply)
            case faults.NoAnswer() as silence:
                with trio.move_on_after(math.inf if silence.seconds is None else silence.seconds):
                    await self._client_gone()
            case faults.HangUp() as hang_up:
                if hang_up.reset:
                    await self._outlet.reset()
            case faults.Slow() as slow:
                end = self._clock() + slow.seconds
                self._outlet.slow(slow.interval, lambda: self._clock() < end)
                await self._send_well(reply)
            case faults.Cut() as cut if isinstance(reply.body, Stream):
                reply.body.misbehave(cut)
                await self._send_well(reply)
            case faults.Cut() as cut:
                await self._send_cut(reply, cut)
            case faults.StrayResponse():
                await self._send_well(reply)
                await self._outlet.send(_STRAY)
            case faults.Gzip():
                await self._send_gzipped(reply)
            case other:
                raise AssertionError(f"{other} is no manner of answering")

    def _headers(self, reply: Reply) -> list[tuple[str, str]]:
        told = self._conditions.told_time(self._clock())
        return [*reply.headers, ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(told)))]

    async def _send_well(self, reply: Reply, gzipped: Gzipped | None = None) -> None:
        headers = self._headers(reply)
        if isinstance(reply.body, Stream):
            headers.append(("Transfer-Encoding", "chunked"))
            await self._send(h11.Response(status_code=reply.status, headers=headers, reason="OK"))
            if await self._send_stream(reply.body, gzipped.piece if gzipped else bytes):
                rest = gzipped.end() if gzipped else b""
                await self._send(h11.Data(rest), h11.EndOfMessage())
        else:
            headers.append(("Content-Length", str(len(reply.body))))
            response = h11.Response(status_code=reply.status, headers=headers)
            await self._send(response, h11.Data(reply.body), h11.EndOfMessage())

    async def _send_gzipped(self, reply: Reply) -> None:
        reply.headers.append(("Content-Encoding", "gzip"))
        gzipped = Gzipped()
        if not isinstance(reply.body, Stream):
            reply.body = gzipped.piece(reply.body) + gzipped.end()
        await self._send_well(reply, gzipped)

    async def _send_cut(self, reply: Reply, cut: faults.Cut) -> None:
        assert isinstance(reply.body, bytes)
        body = reply.body[:-_STUMP] if cut.where == "envelope" else reply.body
        if cut.how == "order":
            reply.body = body
            await self._send_well(reply)
            return
        headers = [*self._headers(reply), ("Content-Length", str(len(reply.body) + _STUMP))]
        await self._send(h11.Response(status_code=reply.status, headers=headers), h11.Data(body))
        if cut.how == "reset":
            await self._outlet.reset()

    async def _send_stream(self, stream: Stream, piece: Callable[[bytes], bytes]) -> bool:
        """Write the stream to its end; False if the client went away before that, or a fault has cut it."""
        whole = reset = False
        manner: faults.Fault | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            while True:
                news = trio.Event()
                stream.wake = news.set
                if stream.manner is manner:
                    with trio.move_on_at(stream.deadline - self._offset):
                        await news.wait()
                    await trio.sleep(TICK)
                manner = stream.manner
                match manner:
                    case None:
                        pass
                    case faults.SilentStream():
                        await self._changed_manner(stream, manner)
                        continue
                    case faults.HangUp():
                        reset = True
                        break
                    case faults.Slow() as slow:
                        self._outlet.slow(slow.interval, partial(_is, stream, slow))
                    case faults.Cut() as cut:
                        data = stream.take(self._clock()) or stream.remark()
                        await self._send(h11.Data(piece(data[:-_STUMP] if cut.where == "envelope" else data)))
                        whole, reset = cut.how == "order", cut.how == "reset"
                        break
                data = stream.take(self._clock())
                if data:
                    await self._send(h11.Data(piece(data)))
                if stream.ended:
                    rest = stream.take(self._clock())
                    if rest:
                        await self._send(h11.Data(piece(rest)))
                    whole = True
                    break
            nursery.cancel_scope.cancel()
        if reset:
            await self._outlet.reset()
        return whole

    @staticmethod
    async def _changed_manner(stream: Stream, manner: faults.Fault) -> None:
        while stream.manner is manner:
            news = trio.Event()
            stream.wake = news.set
            await news.wait()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Notice that the client has gone, while nothing is to be written."""
        await self._client_gone()
        scope.cancel()

    async def _client_gone(self) -> None:
        while data := await self._transport.receive_some(_RECEIVE):
            self._http.receive_data(bytes(data))


def _text(value: bytes) -> str:
    """A header's value, which ASP.NET reads as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _is(stream: Stream, manner: faults.Fault) -> bool:
    return stream.manner is manner
