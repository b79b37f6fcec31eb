"""HTTP client for the running daemon, over its Unix socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from listener.cli.options import FAILED

if TYPE_CHECKING:
    import httpx

# Seconds. A busy daemon may answer late; a reload closes and opens handlers.
REQUEST_TIMEOUT = 30.0
RELOAD_TIMEOUT = 120.0


@contextmanager
def connect_daemon(config: Path) -> Iterator["httpx.Client"]:
    """Open a client whose URLs are paths. Exit the command if no daemon answers, or if it stops during a request."""
    import httpx

    from listener.cli.exits import exit_on_errors
    from listener.config.load import load_paths
    from listener.text import printable

    with exit_on_errors():
        socket = load_paths(config).status_socket
        transport = httpx.HTTPTransport(uds=str(socket))
        with httpx.Client(
            transport=transport, base_url="http://ews-listener", timeout=REQUEST_TIMEOUT
        ) as client:
            try:
                yield client
            except (httpx.ConnectError, httpx.TimeoutException) as error:
                typer.echo(f"error: no daemon answers at {printable(f'{socket}: {error}')}", err=True)
                raise typer.Exit(FAILED) from None
            except httpx.TransportError:
                typer.echo("error: the daemon has stopped", err=True)
                raise typer.Exit(FAILED) from None
