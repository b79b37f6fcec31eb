"""`ews-listener watch`: what happens with one mailbox, as it happens."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from listener.cli.options import FAILED, ConfigFile

if TYPE_CHECKING:
    from rich.text import Text


def watch(
    config: ConfigFile,
    mailbox: Annotated[str, typer.Argument(help="Its address.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for machines.")] = False,
) -> None:
    """Show what happens with one mailbox now: requests, events, deliveries and lines of the log.

    Goes on until it is interrupted; ends with exit code 1 if the daemon ends, or does not listen to the mailbox.
    """
    from contextlib import suppress
    from json import loads
    from urllib.parse import quote

    from rich.console import Console

    from listener.cli.daemon_client import daemon_of
    from listener.text import printable, printable_json

    console = Console(highlight=False, soft_wrap=True)
    with (
        suppress(KeyboardInterrupt, BrokenPipeError),
        daemon_of(config) as daemon,
        daemon.stream("GET", f"/watch/{quote(mailbox)}", timeout=None) as answer,
    ):
        if answer.is_error:
            typer.echo(f"error: {printable(answer.read().decode(errors='replace').strip())}", err=True)
            raise typer.Exit(FAILED)
        for line in answer.iter_lines():
            if json:
                print(printable_json(line.encode()).decode(), flush=True)
            else:
                console.print(_shown(loads(line)))
        typer.echo("error: the daemon has ended", err=True)
        raise typer.Exit(FAILED)


def _shown(line: dict[str, Any]) -> "Text":
    from rich.text import Text

    from listener.text import printable

    colours = {"event": "cyan", "request": "blue", "delivery": "green", "lost": "red"}
    kind = str(line.pop("kind"))
    bad = line.get("result", "done") != "done" or (kind == "request" and line.get("code") != "ok")
    text = Text()
    text.append(f"{printable(str(line.pop('time'))[11:23])}  ", style="dim")
    text.append(f"{printable(kind):<9}", style="red" if bad else colours.get(kind, ""))
    # What it is comes first, and then the rest.
    for first in ("event", "type", "operation", "handler", "result"):
        if first in line:
            text.append(f"  {printable(str(line.pop(first)))}", style="bold")
    for key, value in line.items():
        text.append(f"  {printable(key)}=", style="dim")
        text.append(printable(str(value)))
    return text
