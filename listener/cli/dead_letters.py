"""`ews-listener dead-letters` and `ews-listener replay`: what handlers could not handle, and what they get again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from listener.cli.options import ConfigFile

if TYPE_CHECKING:
    from listener.journal import DeadLetter
    from listener.journal.beside import Desk

T = TypeVar("T")

app = typer.Typer(
    name="dead-letters",
    help="Events that a handler gave up: list them, look at one, give them back or delete them.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
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
        for letter in _at_desk(config, lambda desk: desk.dead_letters(handler, after=after, limit=limit))
    ]
    if json:
        _print_json(letters)
        return
    for letter in letters:
        event = letter["event"]
        typer.echo(
            f"{letter['number']:>6}  {_moment(letter['time'])}  {letter['handler']}  {event['type']}  "
            f"{event['data']['mailbox']}  {letter['reason']}"
        )
    if not letters:
        typer.echo("no dead letters")


@app.command()
def show(config: ConfigFile, number: Annotated[int, typer.Argument()], json: Json = False) -> None:
    """Show one dead letter, with its event and its traceback."""
    found = _at_desk(config, lambda desk: _found(desk, number))
    letter = _summary(found) | {"traceback": found.traceback}
    if json:
        _print_json(letter)
        return
    typer.echo(f"number    {letter['number']}")
    typer.echo(f"handler   {letter['handler']}")
    typer.echo(f"time      {_moment(letter['time'])}")
    typer.echo(f"attempts  {letter['attempts']}")
    typer.echo(f"reason    {letter['reason']}")
    _print_json(letter["event"])
    typer.echo(letter["traceback"], nl=False)


@app.command()
def retry(config: ConfigFile, numbers: Numbers, json: Json = False) -> None:
    """Give dead letters back to their handlers."""
    _told(_at_desk(config, lambda desk: desk.retry(numbers)), "given back", json)


@app.command()
def discard(config: ConfigFile, numbers: Numbers, json: Json = False) -> None:
    """Delete dead letters."""
    _told(_at_desk(config, lambda desk: desk.discard(numbers)), "deleted", json)


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
    count = _at_desk(config, lambda desk: desk.replay(handler, time() - seconds, mailbox))
    _told(count, "on their way again", json)


def _at_desk(config: Path, work: "Callable[[Desk], T]") -> T:
    """What `work` makes of the journal, beside a daemon or without one. Ends the command if it cannot be asked."""
    from listener.cli.ending import reported
    from listener.config import load
    from listener.journal.beside import open_desk

    with reported(), open_desk(load(config).state_directory) as desk:
        return work(desk)
    raise AssertionError("errors end the command")


def _found(desk: "Desk", number: int) -> "DeadLetter":
    from listener.journal import JournalError

    letter = desk.dead_letter(number)
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


def _told(count: int, what: str, json: bool) -> None:
    if json:
        _print_json({"count": count})
    else:
        typer.echo(f"{count} {what}")


def _print_json(value: object) -> None:
    from json import dumps

    typer.echo(dumps(value))


def _moment(time: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}Z"
