"""HTTP/1.1 connections on trio, including faults on the wire.

Streams are written in ticks of a few milliseconds, so that many events share one write. trio disables Nagle's
algorithm.
"""

import math
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import partial

import h11
import trio

from listener.simulator import faults
from listener.simulator.fault_effects import Conditions
from listener.simulator.http import Reply, page
from listener.simulator.subscriptions import Stream

Answer = Callable[[str, str, Mapping[str, str], bytes], Reply]
"""Answers the requests of one connection: (method, path, headers, body) -> reply. Header names are lower case."""
Transport = trio.SocketStream | trio.SSLStream[trio.SocketStream]
TICK = 0.003
"""Seconds that a stream waits for more events before it writes."""
_MAX_BODY = 4 << 20
_RECEIVE = 1 << 16
_CUT_BYTES = 40
"""Bytes that are missing from a truncated body: fewer than follow the last element of any envelope."""
_LINGER_ZERO = struct.pack("ii", 1, 0)


class ResponseWriter:
    """Writes bytes to a transport. After `slow(interval, …)` it writes one byte at a time."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._interval = 0.0
        self._slow_active: Callable[[], bool] = lambda: False

    def slow(self, interval: float, active: Callable[[], bool]) -> None:
        """Write one byte every `interval` seconds while `active()` is true."""
        self._interval = interval
        self._slow_active = active

    async def send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data) and self._slow_active():
            await self._transport.send_all(data[sent : sent + 1])
            sent += 1
            await trio.sleep(self._interval)
        if sent < len(data):
            await self._transport.send_all(data[sent:] if sent else data)

    async def reset(self) -> None:
        """Close the connection with a TCP RST."""
        stream = self._transport
        raw = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        await trio.aclose_forcefully(raw)


class GzipEncoder:
    """A gzip encoder (RFC 1952) that flushes after each piece, so that a client can decode it on arrival."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=31)

    def encode(self, data: bytes) -> bytes:
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._deflate.flush()


@asynccontextmanager
async def ignore_disconnect(transport: Transport) -> AsyncIterator[None]:
    """Close the transport at the end. A disconnected or non-HTTP client ends its own connection only."""
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


class HttpConnection:
    """One client connection: requests in sequence, each with its reply."""

    def __init__(
        self,
        transport: Transport,
        conditions: Conditions,
        answer: Answer,
        clock: Callable[[], float],
        offset: float,
    ) -> None:
        self._transport = transport
        self._writer = ResponseWriter(transport)
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
            name, value = raw_name.decode("latin-1"), _decode_header(raw_value)
            headers[name] = f"{headers[name]}; {value}" if name in headers else value
        return self._answer(head.method.decode("latin-1"), head.target.decode("latin-1"), headers, body)

    # -- reading ---------------------------------------------------------------------------------------------

    async def _receive(self) -> tuple[h11.Request, bytes] | None:
        """Return the next request with its complete body, or None at the end of the connection."""
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
                if len(body) > _MAX_BODY:
                    raise _TooLarge
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return head, bytes(body)
            else:
                return None

    # -- writing ---------------------------------------------------------------------------------------------

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join([self._http.send(event) or b"" for event in events])
        await self._writer.send(data)

    async def _send_reply(self, reply: Reply) -> None:
        match reply.fault:
            case None:
                await self._send_complete(reply)
            case faults.NoAnswer() as no_answer:
                with trio.move_on_after(math.inf if no_answer.seconds is None else no_answer.seconds):
                    await self._wait_for_client_close()
            case faults.HangUp() as hang_up:
                if hang_up.reset:
                    await self._writer.reset()
            case faults.Slow() as slow:
                end = self._clock() + slow.seconds
                self._writer.slow(slow.interval, lambda: self._clock() < end)
                await self._send_complete(reply)
            case faults.Cut() as cut if isinstance(reply.body, Stream):
                reply.body.set_fault(cut)
                await self._send_complete(reply)
            case faults.Cut() as cut:
                await self._send_cut(reply, cut)
            case faults.StrayResponse():
                await self._send_complete(reply)
                await self._writer.send(_STRAY)
            case faults.Gzip():
                await self._send_gzipped(reply)
            case other:
                raise AssertionError(f"{other} cannot be applied to a reply")

    def _headers(self, reply: Reply) -> list[tuple[str, str]]:
        server_time = self._conditions.server_time(self._clock())
        return [*reply.headers, ("Date", formatdate(server_time, usegmt=True))]

    async def _send_complete(self, reply: Reply, gzipped: GzipEncoder | None = None) -> None:
        headers = self._headers(reply)
        if isinstance(reply.body, Stream):
            headers.append(("Transfer-Encoding", "chunked"))
            await self._send(h11.Response(status_code=reply.status, headers=headers, reason="OK"))
            if await self._send_stream(reply.body, gzipped.encode if gzipped else bytes):
                rest = gzipped.end() if gzipped else b""
                await self._send(h11.Data(rest), h11.EndOfMessage())
        else:
            headers.append(("Content-Length", str(len(reply.body))))
            response = h11.Response(status_code=reply.status, headers=headers)
            await self._send(response, h11.Data(reply.body), h11.EndOfMessage())

    async def _send_gzipped(self, reply: Reply) -> None:
        reply.headers.append(("Content-Encoding", "gzip"))
        gzipped = GzipEncoder()
        if not isinstance(reply.body, Stream):
            reply.body = gzipped.encode(reply.body) + gzipped.end()
        await self._send_complete(reply, gzipped)

    async def _send_cut(self, reply: Reply, cut: faults.Cut) -> None:
        assert isinstance(reply.body, bytes)
        body = reply.body[:-_CUT_BYTES] if cut.where == "envelope" else reply.body
        if cut.how == "order":
            reply.body = body
            await self._send_complete(reply)
            return
        headers = [*self._headers(reply), ("Content-Length", str(len(reply.body) + _CUT_BYTES))]
        await self._send(h11.Response(status_code=reply.status, headers=headers), h11.Data(body))
        if cut.how == "reset":
            await self._writer.reset()

    async def _send_stream(self, stream: Stream, encode: Callable[[bytes], bytes]) -> bool:
        """Write the stream to its end. Return False if the client disconnected or a fault truncated the
        stream."""
        complete = reset = False
        fault: faults.Fault | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_client_leaves, nursery.cancel_scope)
            while True:
                changed = trio.Event()
                stream.wake = changed.set
                if stream.fault is fault:
                    with trio.move_on_at(stream.deadline - self._offset):
                        await changed.wait()
                    await trio.sleep(TICK)
                fault = stream.fault
                match fault:
                    case None:
                        pass
                    case faults.SilentStream():
                        await self._wait_for_fault_change(stream, fault)
                        continue
                    case faults.HangUp():
                        reset = True
                        break
                    case faults.Slow() as slow:
                        self._writer.slow(slow.interval, partial(_has_fault, stream, slow))
                    case faults.Cut() as cut:
                        data = stream.take(self._clock()) or stream.heartbeat_with_text()
                        await self._send(
                            h11.Data(encode(data[:-_CUT_BYTES] if cut.where == "envelope" else data))
                        )
                        complete, reset = cut.how == "order", cut.how == "reset"
                        break
                data = stream.take(self._clock())
                if data:
                    await self._send(h11.Data(encode(data)))
                if stream.ended:
                    rest = stream.take(self._clock())
                    if rest:
                        await self._send(h11.Data(encode(rest)))
                    complete = True
                    break
            nursery.cancel_scope.cancel()
        if reset:
            await self._writer.reset()
        return complete

    @staticmethod
    async def _wait_for_fault_change(stream: Stream, fault: faults.Fault) -> None:
        while stream.fault is fault:
            changed = trio.Event()
            stream.wake = changed.set
            await changed.wait()

    async def _cancel_when_client_leaves(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` when the client disconnects. Without this, an idle stream would not notice."""
        await self._wait_for_client_close()
        scope.cancel()

    async def _wait_for_client_close(self) -> None:
        while data := await self._transport.receive_some(_RECEIVE):
            self._http.receive_data(bytes(data))


def _decode_header(value: bytes) -> str:
    """Decode a header value as UTF-8, as ASP.NET does, else as Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _has_fault(stream: Stream, fault: faults.Fault) -> bool:
    return stream.fault is fault
