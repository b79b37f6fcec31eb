"""An httpx transport that calls the simulator's Exchange directly, without sockets, on a virtual clock.

It has the transport faults of listener/simulator/server.py, as far as they are visible above the sockets.
"""

import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import trio

from listener.simulator import faults
from listener.simulator.auth import Denied
from listener.simulator.connection import TICK
from listener.simulator.exchange import Exchange
from listener.simulator.http import HttpRequest, Reply, page
from listener.simulator.subscriptions import Stream

EPOCH = 1_800_000_000.0
CUT_BYTES = 40


def clock() -> float:
    """Return the virtual Unix time in seconds."""
    return EPOCH + trio.current_time()


class NetworkStream:
    """The connection object that httpx passes on."""

    def get_extra_info(self, _name: str) -> "NetworkStream":
        return self

    def shutdown(self, _how: int) -> None: ...


class Wire(httpx.AsyncBaseTransport):
    """Passes requests to `exchange`, which a test may replace.

    `requests` has (moment, anchor, operation) of each request, also of refused connections. `under_way` and `most`:
    the number of requests without response headers yet, now and at most. `open`: responses that are not closed.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.requests: list[tuple[float, str, str]] = []
        self.under_way = 0
        self.most = 0
        self.open = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        anchor = request.headers.get("X-AnchorMailbox", "")
        self.requests.append((trio.current_time(), anchor, operation(body)))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._answer(request, body)
        finally:
            self.under_way -= 1

    async def _answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        exchange = self.exchange
        outage = exchange.conditions.outage
        if outage is not None and outage.how == "refuse":
            raise httpx.ConnectError("connection refused")
        reply = self._reply(request, body)
        try:
            await trio.sleep(reply.delay)
            match reply.fault:
                case faults.NoAnswer() as silence:
                    await trio.sleep(float("inf") if silence.seconds is None else silence.seconds)
                    raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
                case faults.HangUp() as hang_up:
                    if hang_up.reset:
                        raise httpx.ReadError("connection reset")
                    raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
                case faults.Slow() as slow if not isinstance(reply.body, Stream):
                    await trio.sleep(min(slow.seconds, slow.interval * len(reply.body)))
                case faults.Cut() as cut if isinstance(reply.body, Stream):
                    reply.body.set_fault(cut)
        except BaseException:
            finish(reply)
            raise
        headers = [*reply.headers, ("Date", date())]
        if isinstance(reply.fault, faults.Gzip):
            headers.append(("Content-Encoding", "gzip"))
        self.open += 1
        return httpx.Response(
            reply.status,
            headers=headers,
            stream=Body(self, reply),
            extensions={"network_stream": NetworkStream()},
        )

    def _reply(self, request: httpx.Request, body: bytes) -> Reply:
        headers = dict(request.headers.items())
        outcome = self.exchange.authenticator.scheme.login(None).check(headers.get("authorization"), clock())
        if isinstance(outcome, Denied):
            return page(401, "Unauthorized", outcome.headers)
        requests = HttpRequest(request.method, request.url.path, headers, body, outcome.account)
        return self.exchange.handle(requests, clock())


class Body(httpx.AsyncByteStream):
    """The body of a response, sent at the time that the server sends it."""

    def __init__(self, wire: Wire, reply: Reply) -> None:
        self._wire = wire
        self._reply = reply
        self._deflate = zlib.compressobj(wbits=31) if isinstance(reply.fault, faults.Gzip) else None
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self._reply.body
        if isinstance(body, Stream):
            async for data in stream_content(body):
                yield self._piece(data)
        else:
            for data in cut(body, self._reply.fault):
                yield self._piece(data)
        if self._deflate is not None:
            yield self._deflate.flush()

    def _piece(self, data: bytes) -> bytes:
        if self._deflate is None:
            return data
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._wire.open -= 1
            finish(self._reply)


def finish(reply: Reply) -> None:
    if isinstance(reply.body, Stream):
        reply.body.close(clock())
    reply.finish()


def cut(body: bytes, fault: faults.Fault | None) -> Any:
    if not isinstance(fault, faults.Cut):
        yield body
        return
    yield body[:-CUT_BYTES] if fault.where == "envelope" else body
    if fault.how != "order":
        raise body_error(fault.how)


def body_error(how: str) -> httpx.HTTPError:
    if how == "reset":
        return httpx.ReadError("connection reset")
    return httpx.RemoteProtocolError(
        "peer closed connection without sending complete message body (incomplete)"
    )


async def stream_content(stream: Stream) -> AsyncIterator[bytes]:
    """Yield what a stream sends, when it sends it."""
    fault: faults.Fault | None = None
    while True:
        news = trio.Event()
        stream.wake = news.set
        if stream.fault is fault:
            with trio.move_on_at(stream.deadline - EPOCH):
                await news.wait()
            await trio.sleep(TICK)
        fault = stream.fault
        match fault:
            case faults.SilentStream():
                await wait_until_changed(stream, fault)
                continue
            case faults.HangUp():
                raise body_error("reset")
            case faults.Slow() as slow:
                data = stream.take(clock())
                while data and stream.fault is slow:
                    yield data[:1]
                    data = data[1:]
                    await trio.sleep(slow.interval)
                if data:
                    yield data
                await trio.sleep(slow.interval)
                continue
            case faults.Cut() as how:
                data = stream.take(clock()) or stream.heartbeat_with_text()
                yield data[:-CUT_BYTES] if how.where == "envelope" else data
                if how.how == "order":
                    return
                raise body_error(how.how)
        if data := stream.take(clock()):
            yield data
        if stream.ended:
            if rest := stream.take(clock()):
                yield rest
            return


async def wait_until_changed(stream: Stream, fault: faults.Fault) -> None:
    while stream.fault is fault:
        news = trio.Event()
        stream.wake = news.set
        await news.wait()


def operation(body: bytes) -> str:
    for name in ("Subscribe", "GetStreamingEvents", "Unsubscribe"):
        if f"<m:{name}>".encode() in body:
            return name
    return "Autodiscover"


def date() -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(clock()))
