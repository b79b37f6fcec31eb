"""`ews-listener replay`: what a handler gets again."""

from typing import Annotated

import typer

from listener.cli.offline import Json, at_offline, tell_count
from listener.cli.options import ConfigFile


def replay(
    config: ConfigFile,
    handler: Annotated[str, typer.Option(help="The handler that gets the events again.")],
    since: Annotated[str, typer.Option(help="How far back: 90s, 30m, 2h, 1d.")],
    mailbox: Annotated[str | None, typer.Option(help="Only this mailbox's.")] = None,
    json: Json = False,
) -> None:
    """Give a handler again what was journaled lately. Works while the daemon runs, and while it does not."""
    from time import time

    from listener.config.values import parse_duration

    try:
        seconds = parse_duration(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    count = at_offline(config, lambda offline: offline.replay(handler, time() - seconds, mailbox))
    tell_count(count, "on their way again", json)
