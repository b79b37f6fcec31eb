"""`ews-listener reload`: the configuration, taken up by the daemon that runs."""

import typer

from listener.cli.options import CONFIGURATION, ConfigFile


def reload(config: ConfigFile) -> None:
    """Have the running daemon take up its configuration anew; returns when that is done.

    Ends with exit code 2 if the new configuration is bad: then nothing has changed.
    """
    from listener.cli.asking import daemon_of

    with daemon_of(config) as daemon:
        answer = daemon.post("/reload")
    told = answer.json()
    for problem in told.get("problems", ()):
        typer.echo(f"error: {problem}", err=True)
    if answer.is_error:
        raise typer.Exit(CONFIGURATION)
    typer.echo("reloaded")
    for key in told["pending"]:
        typer.echo(f"{key} takes effect at the next start")
