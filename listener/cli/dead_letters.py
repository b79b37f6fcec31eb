"""`ews-listener dead-letters`: list, show, requeue and delete dead letters."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from listener.cli.offline import Json, print_count, print_json, with_offline_journal
from listener.cli.options import ConfigFile
from listener.text import printable

if TYPE_CHECKING:
    from listener.journal import DeadLetter
    from listener.journal.offline import OfflineJournal

app = typer.Typer(
    name="dead-letters",
    help="List, show, requeue or delete events that a handler did not accept.",
    no_args_is_help=True,
)

Numbers = Annotated[list[int], typer.Argument(help="Numbers of dead letters, as shown by `list`.")]


@app.command("list")
def list_(
    config: ConfigFile,
    handler: Annotated[str | None, typer.Option(help="Only dead letters of this handler.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of dead letters.")] = 100,
    after: Annotated[int, typer.Option(min=0, help="Only dead letters with a higher number.")] = 0,
    json: Json = False,
) -> None:
    """List dead letters, oldest first."""
    letters = [
        _summary(letter)
        for letter in with_offline_journal(
            config, lambda journal: journal.dead_letters(handler, after=after, limit=limit)
        )
    ]
    if json:
        print_json(letters)
        return
    for letter in letters:
        event = letter["event"]
        line = f"{letter['handler']}  {event['type']}  {event['data']['mailbox']}  {letter['reason']}"
        typer.echo(f"{letter['number']:>6}  {_format_time(letter['time'])}  {printable(line)}")
    if not letters:
        typer.echo("no dead letters")


@app.command()
def show(
    config: ConfigFile,
    number: Annotated[int, typer.Argument(help="Number of the dead letter, as shown by `list`.")],
    json: Json = False,
) -> None:
    """Show one dead letter, with its event and traceback."""
    record = with_offline_journal(config, lambda journal: _find(journal, number))
    letter = _summary(record) | {"traceback": record.traceback}
    if json:
        print_json(letter)
        return
    typer.echo(f"number    {letter['number']}")
    typer.echo(f"handler   {printable(letter['handler'])}")
    typer.echo(f"time      {_format_time(letter['time'])}")
    typer.echo(f"attempts  {letter['attempts']}")
    typer.echo(f"reason    {printable(letter['reason'])}")
    print_json(letter["event"])
    typer.echo(printable(letter["traceback"], multiline=True), nl=False)


@app.command()
def retry(config: ConfigFile, numbers: Numbers, json: Json = False) -> None:
    """Requeue dead letters: deliver them to their handlers again."""
    print_count(with_offline_journal(config, lambda journal: journal.requeue(numbers)), "requeued", json)


@app.command()
def discard(config: ConfigFile, numbers: Numbers, json: Json = False) -> None:
    """Delete dead letters."""
    print_count(with_offline_journal(config, lambda journal: journal.discard(numbers)), "deleted", json)


def _find(journal: "OfflineJournal", number: int) -> "DeadLetter":
    from listener.journal import JournalError

    letter = journal.dead_letter(number)
    if letter is None:
        raise JournalError(f"there is no dead letter {number}")
    return letter


def _summary(letter: "DeadLetter") -> dict[str, Any]:
    """Return the JSON form: number, handler, time, attempts, reason, event (a CloudEvent)."""
    return {
        "number": letter.number,
        "handler": letter.handler,
        "time": letter.time,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "event": letter.event.to_cloudevent(),
    }


def _format_time(time: float) -> str:
    from datetime import UTC, datetime

    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (ValueError, OverflowError, OSError):  # a damaged row
        return f"{'-':<20}"
