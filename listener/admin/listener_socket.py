"""Sockets of the HTTP interface: a Unix socket in the state directory, and a TCP port if one is configured."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
import trio

from listener.admin.hosts import host_check
from listener.config import Config
from listener.errors import ConfigError, Problem

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

    from listener.admin.app import Operable

log = structlog.get_logger()

# Seconds until a crashed HTTP server is restarted.
RESTART_DELAY = 5.0


@asynccontextmanager
async def open_listener_socket(config: Config, daemon: Operable) -> AsyncIterator[None]:
    """Serve the HTTP interface while the context is open.

    Raises ConfigError if an explicitly configured socket cannot be opened. If the default socket cannot be opened,
    the daemon logs `status.unavailable` and runs without it.
    """
    # Imported late: `--help` must not wait for a web server.
    from listener.admin.app import build
    from listener.admin.server import tcp_socket, unix_socket

    status, sockets = config.status, list[socket.socket]()
    with ExitStack() as stack:
        try:
            sockets.append(stack.enter_context(unix_socket(config.status_socket)))
        except OSError as error:
            if status.socket is not None:
                raise _problem("socket", str(status.socket), error) from error
            log.warning("status.unavailable", path=str(config.status_socket), reason=str(error))
        if status.listen is not None:
            try:
                sockets.append(stack.enter_context(tcp_socket(status.listen)))
            except OSError as error:
                raise _problem("listen", status.listen, error) from error
        token = None if status.token is None else status.token.reveal()
        allowed = host_check(status.listen or "localhost", status.allowed_hosts)
        app: Any = build(daemon, token=token, by_mailbox=status.mailbox_metrics, host_allowed=allowed)
        async with trio.open_nursery() as nursery:
            if sockets:
                nursery.start_soon(_serve, app, sockets)
            yield
            nursery.cancel_scope.cancel()


async def _serve(app: ASGIFramework, sockets: list[socket.socket]) -> None:
    """Run the HTTP server and restart it after a crash, which must not stop the daemon."""
    from listener.admin.server import serve

    while True:
        try:
            await serve(app, sockets)
        except Exception as error:
            log.error("status.broken", exc_info=error)
        await trio.sleep(RESTART_DELAY)


def _problem(key: str, value: str, error: OSError) -> ConfigError:
    return ConfigError([Problem(f"status.{key}", f"cannot listen at {value}: {error.strerror or error}")])
