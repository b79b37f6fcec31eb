"""`ews-listener status`: show the status of the running daemon."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from listener.cli.options import FAILED, ConfigFile

if TYPE_CHECKING:
    import httpx

    from listener.admin.snapshot import Snapshot


def status(
    config: ConfigFile,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh the display every second.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the status as one JSON object.")] = False,
) -> None:
    """Show the status of the running daemon: mailboxes, groups, handlers, journal and problems.

    The exit code is 1 if no daemon answers, or if the daemon is not healthy or not ready.
    """
    from contextlib import suppress

    from listener.cli.daemon_client import connect_daemon

    with connect_daemon(config) as daemon, suppress(KeyboardInterrupt):
        if watch:
            _watch(daemon, json=json)
        text = daemon.get("/status.json").text
        snapshot = _read(text)
        if json:
            _echo_json(text)
        else:
            from rich.console import Console

            from listener.admin.view import render_status

            # Output to a pipe or file is not wrapped to the width of a terminal.
            width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
            Console(highlight=False, width=width).print(render_status(snapshot))
        if not (snapshot.healthy and snapshot.ready):
            raise typer.Exit(FAILED)


def _echo_json(text: str) -> None:
    from listener.text import printable_json

    typer.echo(printable_json(text.encode()).decode(), nl=False)


def _watch(daemon: "httpx.Client", *, json: bool) -> None:
    """Show the status every second until the user interrupts or the daemon stops."""
    import time

    if json:
        while True:
            _echo_json(daemon.get("/status.json").text)
            sys.stdout.flush()
            time.sleep(1)

    from rich.live import Live

    from listener.admin.view import render_status

    previous: Snapshot | None = None
    with Live(screen=sys.stdout.isatty(), auto_refresh=False) as live:
        while True:
            snapshot = _read(daemon.get("/status.json").text)
            live.update(render_status(snapshot, previous), refresh=True)
            previous = snapshot
            time.sleep(1)


def _read(text: str) -> "Snapshot":
    import msgspec

    from listener.admin.snapshot import Snapshot

    return msgspec.json.decode(text, type=Snapshot)
