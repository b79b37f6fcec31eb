"""`ews-listener tail`: show the log in columns."""

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
            help="The log file; - means standard input. Default: standard input, or the systemd journal if standard "
            "input is a terminal.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new lines at the end.")] = False,
    mailbox: Annotated[str | None, typer.Option(help="Only lines about this mailbox.")] = None,
    group: Annotated[str | None, typer.Option(help="Only lines about this group.")] = None,
    handler: Annotated[str | None, typer.Option(help="Only lines about this handler.")] = None,
    level: Annotated[str, typer.Option(help="Minimum level: debug, info, warning or error.")] = "debug",
    event: Annotated[str | None, typer.Option(help='Only this event, or a glob such as "group.*".')] = None,
    since: Annotated[
        str | None, typer.Option(help="How far to go back (90s, 30m, 2h, 1d), or a time (2026-03-01T12:00).")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Only the journal of this systemd unit.")] = None,
) -> None:
    """Show the log in columns and colors, filtered by the options."""
    import sys
    from contextlib import suppress

    from rich.console import Console

    from listener.log.reader import LEVELS, LogReader, Selection

    if level not in LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(LEVELS)}", param_hint="--level")
    start = None if since is None else _parse_since(since)
    reader = LogReader(
        Selection(mailbox=mailbox, group=group, handler=handler, event=event, level=level, since=start)
    )
    console = Console(highlight=False, soft_wrap=True)
    with suppress(KeyboardInterrupt, BrokenPipeError):
        for text in _lines(file, follow, start, unit):
            if (rendered := reader.render(text)) is not None:
                console.print(rendered)
        sys.stdout.flush()
        return
    # The pipe was closed. At exit the interpreter must not try to flush the rest into it.
    with suppress(OSError):
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115


def _parse_since(text: str) -> "datetime":
    """Return the time that --since means. Raises BadParameter."""
    from datetime import UTC, datetime, timedelta

    from listener.config.values import parse_duration

    try:
        time = datetime.fromisoformat(text)
        return time.astimezone() if time.tzinfo is None else time
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
    """Yield the lines of a file and, with `follow`, new ones. A file that was replaced or truncated is read from its
    start."""
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
                    current = path.stat()
                except FileNotFoundError:
                    continue  # during a rotation
                replaced = (current.st_dev, current.st_ino) != (opened.st_dev, opened.st_ino)
                if replaced or current.st_size < file.tell():
                    break


def _journal(follow: bool, since: "datetime | None", unit: str | None) -> Iterator[str]:
    import subprocess

    from listener.log.journald import IDENTIFIER

    # Without --all, long fields such as tracebacks are null.
    command = ["journalctl", "--output=json", "--all", "--no-pager"]
    command += [f"--identifier={IDENTIFIER}"] if unit is None else [f"--unit={unit}"]
    command += ["--lines=1000"] if since is None else [f"--since=@{int(since.timestamp())}", "--lines=all"]
    command += ["--follow"] if follow else []
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
    except FileNotFoundError:
        typer.echo("error: journalctl is not installed; pass the log file as an argument", err=True)
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
