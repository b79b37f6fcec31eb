"""Listening sockets and the HTTP server (hypercorn's trio worker)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import hypercorn.trio.run
import trio
from hypercorn.config import Config as Hypercorn
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio import serve as hypercorn_serve
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ASGIFramework

# Maximum number of connections that wait to be accepted.
BACKLOG = 16


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """Open a listening socket that only its owner can connect to. Raises OSError.

    An existing socket file is replaced. That is safe, because the lock of the state directory excludes other daemons.
    """
    temporary = path.with_name(f"{path.name}.new")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with suppress(FileNotFoundError):
            temporary.unlink()
        # bind() creates the file with this mode (unix(7) on Linux). A chmod() afterwards would follow a symbolic link
        # that an attacker put in its place.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(temporary))
        listener.listen(BACKLOG)
        temporary.rename(path)
        try:
            yield listener
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def tcp_socket(address: str) -> Iterator[socket.socket]:
    """Open a listening socket at HOST:PORT. Raises OSError."""
    parts = urlsplit(f"//{address}")
    family, kind, protocol, _, where = socket.getaddrinfo(
        parts.hostname, parts.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
        yield listener


class Connection(TCPServer):
    """A connection whose writes can be cancelled.

    hypercorn shields its writes from cancellation. A client that stops reading would block the stop of the daemon.
    """

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                closed = True
            else:
                closed = False
        if closed:
            await self.protocol.handle(Closed())


# hypercorn has no setting for the connection class.
hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined]


async def serve(
    app: ASGIFramework,
    sockets: Sequence[socket.socket],
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve requests until cancelled."""
    settings = Hypercorn()
    # hypercorn closes the descriptors that it gets, so it gets duplicates.
    settings.bind = [f"fd://{os.dup(each.fileno())}" for each in sockets]
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.accesslog = None
    settings.include_server_header = False
    settings.graceful_timeout = 0.5
    await hypercorn_serve(app, settings, task_status=task_status)
