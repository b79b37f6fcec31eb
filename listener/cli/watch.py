"""`ews-listener watch`: trace one mailbox in real time."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from listener.cli.options import FAILED, ConfigFile

if TYPE_CHECKING:
    from rich.text import Text


def watch(
    config: ConfigFile,
    mailbox: Annotated[str, typer.Argument(help="The address of the mailbox.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Trace one mailbox in real time: requests, events, deliveries and log lines.

    Press Ctrl-C to stop. The exit code is 1 if the daemon stops or does not listen to the mailbox.
    """
    from contextlib import suppress
    from json import loads
    from urllib.parse import quote

    from rich.console import Console

    from listener.cli.daemon_client import connect_daemon
    from listener.text import printable, printable_json

    console = Console(highlight=False, soft_wrap=True)
    with (
        suppress(KeyboardInterrupt, BrokenPipeError),
        connect_daemon(config) as daemon,
        daemon.stream("GET", f"/watch/{quote(mailbox)}", timeout=None) as response,
    ):
        if response.is_error:
            typer.echo(f"error: {printable(response.read().decode(errors='replace').strip())}", err=True)
            raise typer.Exit(FAILED)
        for line in response.iter_lines():
            if json:
                print(printable_json(line.encode()).decode(), flush=True)
            else:
                console.print(_render(loads(line)))
        typer.echo("error: the daemon has stopped", err=True)
        raise typer.Exit(FAILED)


def _render(line: dict[str, Any]) -> "Text":
    from rich.text import Text

    from listener.text import printable

    colors = {"event": "cyan", "request": "blue", "delivery": "green", "lost": "red"}
    kind = str(line.pop("kind"))
    failed = line.get("result", "done") != "done" or (kind == "request" and line.get("code") != "ok")
    text = Text()
    text.append(f"{printable(str(line.pop('time'))[11:23])}  ", style="dim")
    text.append(f"{printable(kind):<9}", style="red" if failed else colors.get(kind, ""))
    for main in ("event", "type", "operation", "handler", "result"):
        if main in line:
            text.append(f"  {printable(str(line.pop(main)))}", style="bold")
    for key, value in line.items():
        text.append(f"  {printable(key)}=", style="dim")
        text.append(printable(str(value)))
    return text
