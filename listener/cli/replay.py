"""`ews-listener replay`: redeliver events to a handler."""

from typing import Annotated

import typer

from listener.cli.offline import Json, print_count, with_offline_journal
from listener.cli.options import ConfigFile


def replay(
    config: ConfigFile,
    handler: Annotated[str, typer.Option(help="The handler that receives the events.")],
    since: Annotated[str, typer.Option(help="How far to go back: 90s, 30m, 2h, 1d.")],
    mailbox: Annotated[str | None, typer.Option(help="Only events of this mailbox.")] = None,
    json: Json = False,
) -> None:
    """Redeliver recent events to a handler. The daemon may be running or stopped."""
    from time import time

    from listener.config.values import parse_duration

    try:
        seconds = parse_duration(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    count = with_offline_journal(config, lambda journal: journal.replay(handler, time() - seconds, mailbox))
    print_count(count, "queued for redelivery", json)
