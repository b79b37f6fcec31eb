"""`ews-listener tail`: the log, for people."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from listener.cli.options import FAILED

if TYPE_CHECKING:
    from datetime import datetime


def tail(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="The log; - is standard input. Left out: standard input, or the journal if that is a terminal.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more at the end.")] = False,
    mailbox: Annotated[str | None, typer.Option(help="Only lines about this mailbox.")] = None,
    group: Annotated[str | None, typer.Option(help="Only lines about this group.")] = None,
    handler: Annotated[str | None, typer.Option(help="Only lines about this handler.")] = None,
    level: Annotated[str, typer.Option(help="The least: debug, info, warning or error.")] = "debug",
    event: Annotated[str | None, typer.Option(help='Only this event, or a glob such as "group.*".')] = None,
    since: Annotated[
        str | None, typer.Option(help="How far back (90s, 30m, 2h, 1d), or a moment (2026-03-01T12:00).")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="The journal of this unit only.")] = None,
) -> None:
    """Show the log to people: in columns, coloured, and only what is asked for."""
    import sys
    from contextlib import suppress

    from rich.console import Console

    from listener.log.reading import LEVELS, Reading, Wanted

    if level not in LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(LEVELS)}", param_hint="--level")
    from_then = None if since is None else _moment(since)
    wanted = Wanted(mailbox=mailbox, group=group, handler=handler, event=event, level=level, since=from_then)
    reading = Reading(wanted)
    console = Console(highlight=False, soft_wrap=True)
    with suppress(KeyboardInterrupt, BrokenPipeError):
        for text in _lines(file, follow, from_then, unit):
            if (shown := reading.show(text)) is not None:
                console.print(shown)
        sys.stdout.flush()
        return
    # Nobody reads any more: the interpreter must not try to write what is left.
    with suppress(OSError):
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115


def _moment(text: str) -> "datetime":
    """Raises BadParameter."""
    from datetime import UTC, datetime, timedelta

    from listener.config.values import parse_duration

    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone() if moment.tzinfo is None else moment
    except ValueError:
        try:
            return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
        except (ValueError, OverflowError) as error:
            raise typer.BadParameter(str(error), param_hint="--since") from None


def _lines(file: Path | None, follow: bool, since: "datetime | None", unit: str | None) -> Iterator[str]:
    import sys

    from listener.text import printable

    if file is None and sys.stdin.isatty():
        yield from _journal(follow, since, unit)
    elif file is None or str(file) == "-":
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "replace")
    else:
        try:
            yield from _file(file, follow)
        except OSError as error:
            typer.echo(f"error: {printable(str(file))}: {error.strerror}", err=True)
            raise typer.Exit(FAILED) from None


def _file(path: Path, follow: bool) -> Iterator[str]:
    """The lines of a file, and those to come; a file that is replaced or made shorter is read from its beginning."""
    import os
    import time

    while True:
        with path.open("rb") as file:
            opened, rest = os.fstat(file.fileno()), b""
            while True:
                for line in file:
                    rest += line
                    if rest.endswith(b"\n"):
                        yield rest.decode("utf-8", "replace")
                        rest = b""
                if not follow:
                    if rest:
                        yield rest.decode("utf-8", "replace")
                    return
                time.sleep(0.2)
                try:
                    there = path.stat()
                except FileNotFoundError:
                    continue  # between two files
                if (there.st_dev, there.st_ino) != (
                    opened.st_dev,
                    opened.st_ino,
                ) or there.st_size < file.tell():
                    break


def _journal(follow: bool, since: "datetime | None", unit: str | None) -> Iterator[str]:
    import subprocess

    from listener.log.journald import IDENTIFIER

    command = [
        "journalctl",
        "--output=json",
        "--all",
        "--no-pager",
    ]  # else long fields, as tracebacks, are null
    command += [f"--identifier={IDENTIFIER}"] if unit is None else [f"--unit={unit}"]
    command += ["--lines=1000"] if since is None else [f"--since=@{int(since.timestamp())}", "--lines=all"]
    command += ["--follow"] if follow else []
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
    except FileNotFoundError:
        typer.echo("error: there is no journalctl here; name the file of the log", err=True)
        raise typer.Exit(FAILED) from None
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield line.decode("utf-8", "replace")
        finally:
            process.terminate()
    if process.returncode > 0:
        raise typer.Exit(FAILED)
