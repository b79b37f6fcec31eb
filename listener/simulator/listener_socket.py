"""The listening socket, which can be shut for a while."""

import socket
from collections.abc import Awaitable, Callable

import trio


class ListenerSocket:
    """While it is shut connections are refused, yet the port stays ours."""

    def __init__(
        self,
        listeners: list[trio.SocketListener],
        handle: Callable[[trio.SocketStream], Awaitable[object]],
        nursery: trio.Nursery,
    ) -> None:
        self._nursery = nursery
        self._handle = handle
        self._addresses = [(each.socket.family, each.socket.getsockname()) for each in listeners]
        self._kept: list[trio.socket.SocketType] = []
        self._accepting = trio.CancelScope()
        self._serve(listeners)

    async def set_open(self, *, wanted: bool) -> None:
        """Open it, or shut it. OSError: somebody else has taken the port in the moment between."""
        if wanted == (not self._kept):
            return
        if wanted:
            for kept in self._kept:
                kept.listen(1024)
            listeners = [trio.SocketListener(kept) for kept in self._kept]
            self._kept = []
            self._serve(listeners)
            return
        self._accepting.cancel()
        await self._closed.wait()
        for family, address in self._addresses:
            # Bound, but not listening: whoever connects is refused.
            kept = trio.socket.socket(family, socket.SOCK_STREAM)
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                kept.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await kept.bind(address)
            self._kept.append(kept)

    def close(self) -> None:
        for kept in self._kept:
            kept.close()

    def _serve(self, listeners: list[trio.SocketListener]) -> None:
        self._accepting = trio.CancelScope()
        self._closed = trio.Event()
        self._nursery.start_soon(self._accept, listeners, self._accepting, self._closed)

    async def _accept(
        self, listeners: list[trio.SocketListener], scope: trio.CancelScope, closed: trio.Event
    ) -> None:
        with scope:
            await trio.serve_listeners(self._handle, listeners, handler_nursery=self._nursery)
        closed.set()
