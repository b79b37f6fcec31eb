"""`ews-listener dead-letters`: what handlers could not handle."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from listener.cli.offline import Json, at_offline, print_json, tell_count
from listener.cli.options import ConfigFile
from listener.text import printable

if TYPE_CHECKING:
    from listener.journal import DeadLetter
    from listener.journal.offline import OfflineJournal

app = typer.Typer(
    name="dead-letters",
    help="Events that a handler gave up: list them, look at one, give them back or delete them.",
    no_args_is_help=True,
)

Numbers = Annotated[list[int], typer.Argument(help="Numbers, as `list` tells them.")]


@app.command("list")
def list_(
    config: ConfigFile,
    handler: Annotated[str | None, typer.Option(help="Only those of this handler.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 100,
    after: Annotated[int, typer.Option(min=0, help="Only those with higher numbers.")] = 0,
    json: Json = False,
) -> None:
    """List dead letters, oldest first."""
    letters = [
        _summary(letter)
        for letter in at_offline(
            config, lambda offline: offline.dead_letters(handler, after=after, limit=limit)
        )
    ]
    if json:
        print_json(letters)
        return
    for letter in letters:
        event = letter["event"]
        line = f"{letter['handler']}  {event['type']}  {event['data']['mailbox']}  {letter['reason']}"
        typer.echo(f"{letter['number']:>6}  {_moment(letter['time'])}  {printable(line)}")
    if not letters:
        typer.echo("no dead letters")


@app.command()
def show(config: ConfigFile, number: Annotated[int, typer.Argument()], json: Json = False) -> None:
    """Show one dead letter, with its event and its traceback."""
    found = at_offline(config, lambda offline: _found(offline, number))
    letter = _summary(found) | {"traceback": found.traceback}
    if json:
        print_json(letter)
        return
    typer.echo(f"number    {letter['number']}")
    typer.echo(f"handler   {printable(letter['handler'])}")
    typer.echo(f"time      {_moment(letter['time'])}")
    typer.echo(f"attempts  {letter['attempts']}")
    typer.echo(f"reason    {printable(letter['reason'])}")
    print_json(letter["event"])
    typer.echo(printable(letter["traceback"], multiline=True), nl=False)


@app.command()
def retry(config: ConfigFile, numbers: Numbers, json: Json = False) -> None:
    """Give dead letters back to their handlers."""
    tell_count(at_offline(config, lambda offline: offline.requeue(numbers)), "given back", json)


@app.command()
def discard(config: ConfigFile, numbers: Numbers, json: Json = False) -> None:
    """Delete dead letters."""
    tell_count(at_offline(config, lambda offline: offline.discard(numbers)), "deleted", json)


def _found(offline: "OfflineJournal", number: int) -> "DeadLetter":
    from listener.journal import JournalError

    letter = offline.dead_letter(number)
    if letter is None:
        raise JournalError(f"there is no dead letter {number}")
    return letter


def _summary(letter: "DeadLetter") -> dict[str, Any]:
    """A dead letter as JSON: number, handler, time, attempts, reason, event (its CloudEvents form)."""
    return {
        "number": letter.number,
        "handler": letter.handler,
        "time": letter.time,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "event": letter.event.to_cloudevent(),
    }


def _moment(time: float) -> str:
    from datetime import UTC, datetime

    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (ValueError, OverflowError, OSError):  # a damaged row
        return f"{'-':<20}"
