"""The sending side of a connection, with good manners and with bad ones."""

import socket
import struct
import zlib
from collections.abc import Callable

import trio

Transport = trio.SocketStream | trio.SSLStream[trio.SocketStream]
_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)


class ResponseWriter:
    """Sends bytes over a transport. While `slow(interval)` is in force they go one at a time."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._interval = 0.0
        self._still_slow: Callable[[], bool] = lambda: False

    def slow(self, interval: float, still: Callable[[], bool]) -> None:
        """One byte every `interval` seconds, as long as `still()` says so."""
        self._interval = interval
        self._still_slow = still

    async def send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data) and self._still_slow():
            await self._transport.send_all(data[sent : sent + 1])
            sent += 1
            await trio.sleep(self._interval)
        if sent < len(data):
            await self._transport.send_all(data[sent:] if sent else data)

    async def reset(self) -> None:
        """End the connection with RST."""
        stream = self._transport
        raw = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)
        await trio.aclose_forcefully(raw)


class Gzipped:
    """RFC 1952, so that each piece can be read as soon as it has come."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=31)

    def piece(self, data: bytes) -> bytes:
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._deflate.flush()
