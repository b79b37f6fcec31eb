"""How commands ask the journal, and what they say of it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from listener.journal.offline import OfflineJournal

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def at_offline(config: Path, work: "Callable[[OfflineJournal], T]") -> T:
    """What `work` makes of the journal, beside a daemon or without one. Ends the command if it cannot be asked.

    The daemon's secrets are no affair of the journal: they need not be there.
    """
    from listener.cli.exits import reported
    from listener.config.load import load_paths
    from listener.journal.offline import open_offline

    with reported(), open_offline(load_paths(config).state_directory) as offline:
        return work(offline)
    raise AssertionError("errors end the command")


def tell_count(count: int, what: str, json: bool) -> None:
    if json:
        print_json({"count": count})
    else:
        typer.echo(f"{count} {what}")


def print_json(value: object) -> None:
    from json import dumps

    typer.echo(dumps(value))
