"""Access of commands to the journal, with or without a running daemon."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from listener.journal.offline import OfflineJournal

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def with_offline_journal(config: Path, work: "Callable[[OfflineJournal], T]") -> T:
    """Return what `work` returns for the journal. Exit the command with an error if the journal cannot be opened.

    Reads only the path of the state directory from the configuration. The daemon's secrets need not be available,
    because an operator's shell does not have the credentials of the service.
    """
    from listener.cli.exits import exit_on_errors
    from listener.config.load import load_paths
    from listener.journal.offline import open_offline

    with exit_on_errors(), open_offline(load_paths(config).state_directory) as journal:
        return work(journal)
    raise AssertionError("errors end the command")


def print_count(count: int, what: str, json: bool) -> None:
    if json:
        print_json({"count": count})
    else:
        typer.echo(f"{count} {what}")


def print_json(value: object) -> None:
    from json import dumps

    typer.echo(dumps(value))
