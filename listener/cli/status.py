"""`ews-listener status`: how the daemon is."""

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
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Show how the running daemon is: mailboxes, groups, handlers, journal, and what is not as it should be.

    Ends with exit code 1 if no daemon answers, or it is not well.
    """
    from contextlib import suppress

    from listener.cli.daemon_client import daemon_of

    with daemon_of(config) as daemon, suppress(KeyboardInterrupt):
        if watch:
            _watch(daemon, json=json)
        text = daemon.get("/status.json").text
        snapshot = _read(text)
        if json:
            _echo_json(text)
        else:
            from rich.console import Console

            from listener.admin.view import picture

            # Where nobody looks at a terminal, lines need not fit one.
            width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
            Console(highlight=False, width=width).print(picture(snapshot))
        if not (snapshot.healthy and snapshot.ready):
            raise typer.Exit(FAILED)


def _echo_json(text: str) -> None:
    from listener.text import printable_json

    typer.echo(printable_json(text.encode()).decode(), nl=False)


def _watch(daemon: "httpx.Client", *, json: bool) -> None:
    """Until it is interrupted, or the daemon ends."""
    import time

    if json:
        while True:
            _echo_json(daemon.get("/status.json").text)
            sys.stdout.flush()
            time.sleep(1)

    from rich.live import Live

    from listener.admin.view import picture

    before: Snapshot | None = None
    with Live(screen=sys.stdout.isatty(), auto_refresh=False) as live:
        while True:
            snapshot = _read(daemon.get("/status.json").text)
            live.update(picture(snapshot, before), refresh=True)
            before = snapshot
            time.sleep(1)


def _read(text: str) -> "Snapshot":
    import msgspec

    from listener.admin.snapshot import Snapshot

    return msgspec.json.decode(text, type=Snapshot)
