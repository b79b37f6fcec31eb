"""`ews-listener reload`: the configuration, taken up by the daemon that runs."""

import typer

from listener.cli.options import CONFIGURATION, FAILED, ConfigFile


def reload(config: ConfigFile) -> None:
    """Have the running daemon take up its configuration anew; returns when that is done.

    Ends with exit code 2 if the daemon does not take it up, and tells why: mostly the new configuration is bad, and
    then nothing has changed. Ends with exit code 1 if it takes longer than two minutes: then the reload goes on.
    """
    from httpx import ReadTimeout

    from listener.cli.daemon_client import RELOADING, daemon_of
    from listener.text import printable

    with daemon_of(config) as daemon:
        try:
            answer = daemon.post("/reload", timeout=RELOADING)
        except ReadTimeout:
            told = "the reload goes on, and ews-listener status tells what comes of it"
            typer.echo(f"error: not done within {RELOADING:g} s; {told}", err=True)
            raise typer.Exit(FAILED) from None
    news = answer.json()
    for problem in news.get("problems", ()):
        typer.echo(f"error: {printable(problem)}", err=True)
    if answer.is_error:
        raise typer.Exit(CONFIGURATION)
    typer.echo("reloaded")
    for key in news["pending"]:
        typer.echo(f"{key} takes effect at the next start")
