"""`ews-listener reload`: reload the configuration of the running daemon."""

import typer

from listener.cli.options import CONFIGURATION, FAILED, ConfigFile


def reload(config: ConfigFile) -> None:
    """Reload the running daemon's configuration and wait for the result.

    Exit code 1: the reload takes longer than two minutes. It continues in the daemon.
    Exit code 2: the daemon rejected the reload. The reasons are printed. If the configuration is invalid, nothing
    has changed.
    """
    from httpx import ReadTimeout

    from listener.cli.daemon_client import RELOAD_TIMEOUT, connect_daemon
    from listener.text import printable

    with connect_daemon(config) as daemon:
        try:
            response = daemon.post("/reload", timeout=RELOAD_TIMEOUT)
        except ReadTimeout:
            hint = "it continues in the daemon; run ews-listener status to see the result"
            typer.echo(f"error: the reload did not finish within {RELOAD_TIMEOUT:g} s; {hint}", err=True)
            raise typer.Exit(FAILED) from None
    result = response.json()
    for problem in result.get("problems", ()):
        typer.echo(f"error: {printable(problem)}", err=True)
    if response.is_error:
        raise typer.Exit(CONFIGURATION)
    typer.echo("reloaded")
    for key in result["pending"]:
        typer.echo(f"{key} takes effect at the next start")
