"""The sockets that operators come by, and the server behind them: hypercorn's trio worker."""

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

# Connections that may wait to be accepted.
BACKLOG = 16


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket that only its owner can open. One of that name that is there already is replaced: whoever
    holds the lock of the state directory is the only one. Raises OSError."""
    temporary = path.with_name(f"{path.name}.new")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
        with suppress(FileNotFoundError):
            temporary.unlink()
        # The file has this mode from its beginning (unix(7) on Linux): a chmod() afterwards would follow a link that
        # somebody put in its place.
        os.fchmod(there.fileno(), 0o600)
        there.bind(str(temporary))
        there.listen(BACKLOG)
        temporary.rename(path)
        try:
            yield there
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def tcp_socket(address: str) -> Iterator[socket.socket]:
    """A listening socket at HOST:PORT. Raises OSError."""
    parts = urlsplit(f"//{address}")
    family, kind, protocol, _, where = socket.getaddrinfo(
        parts.hostname, parts.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        there.bind(where)
        there.listen(BACKLOG)
        yield there


class Connection(TCPServer):
    """One that can be given up: hypercorn's own shields what it sends, and so waits for ever, even at the end, for
    somebody who has stopped reading."""

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                gone = True
            else:
                gone = False
        if gone:
            await self.protocol.handle(Closed())


# It has no place for this.
hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined]


async def serve(
    app: ASGIFramework,
    sockets: Sequence[socket.socket],
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until it is cancelled."""
    settings = Hypercorn()
    # It closes what it is given: it gets descriptors of its own.
    settings.bind = [f"fd://{os.dup(each.fileno())}" for each in sockets]
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.accesslog = None
    settings.include_server_header = False
    settings.graceful_timeout = 0.5
    await hypercorn_serve(app, settings, task_status=task_status)
