"""Asks the daemon that runs with a configuration, over its Unix socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from listener.cli.options import FAILED

if TYPE_CHECKING:
    import httpx

# Seconds that a daemon may take to answer: it may be busy. A reload closes and opens handlers.
PATIENCE = 30.0
RELOADING = 120.0


@contextmanager
def daemon_of(config: Path) -> Iterator["httpx.Client"]:
    """A way to ask it: URLs are paths. Ends the command if no daemon is there, or it goes away meanwhile."""
    import httpx

    from listener.cli.exits import reported
    from listener.config.load import load_paths
    from listener.text import printable

    with reported():
        socket = load_paths(config).status_socket
        way = httpx.HTTPTransport(uds=str(socket))
        with httpx.Client(transport=way, base_url="http://ews-listener", timeout=PATIENCE) as client:
            try:
                yield client
            except (httpx.ConnectError, httpx.TimeoutException) as error:
                typer.echo(f"error: no daemon answers at {printable(f'{socket}: {error}')}", err=True)
                raise typer.Exit(FAILED) from None
            except httpx.TransportError:
                typer.echo("error: the daemon has ended", err=True)
                raise typer.Exit(FAILED) from None
