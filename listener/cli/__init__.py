"""The command line. Each command has its own module. Only this package turns errors into exit codes (docs/CLI.md).

Command modules import heavy packages inside functions, so that `--help` and completion respond at once.
"""

import os
import sys
from typing import Annotated

import typer

from listener._version import __version__
from listener.cli.check import check
from listener.cli.dead_letters import app as dead_letters
from listener.cli.demo import demo
from listener.cli.reload import reload
from listener.cli.replay import replay
from listener.cli.run import run
from listener.cli.simulate import simulate
from listener.cli.status import status
from listener.cli.tail import tail
from listener.cli.watch import watch

app = typer.Typer(
    name="ews-listener",
    help="Stream changes from Exchange mailboxes (EWS streaming notifications) and deliver them to your handlers.",
    no_args_is_help=True,
    # Shells set this variable to ask for completions. Otherwise typer would add two options to `--help`.
    add_completion="_EWS_LISTENER_COMPLETE" in os.environ,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(check)
app.add_typer(dead_letters)
app.command()(replay)
app.command()(status)
app.command()(reload)
app.command()(watch)
app.command()(tail)
app.command()(demo)
app.command()(simulate)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None: ...


def main() -> None:
    """Run the `ews-listener` command."""
    _open_standard_streams()
    app()


def _open_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that was closed when the process started.

    Otherwise the next opened file would get that descriptor, and text for standard error would be written into it.
    """
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(number)
        except OSError:
            # open() returns the lowest free descriptor. That is this one, because the lower ones are open.
            descriptor = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            os.set_inheritable(descriptor, True)
        name = ("stdin", "stdout", "stderr")[number]
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
