"""Print the manual page ews-listener(1): commands from the program itself, the rest from docs/CLI.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from listener import __version__
from listener.cli import app

PAGE = (Path(__file__).parent.parent / "docs" / "CLI.md").read_text(encoding="utf-8")
FILES = {
    "/etc/ews-listener/config.toml": "The configuration of the service ews-listener.",
    "/etc/ews-listener/NAME.toml": "The configuration of the instance ews-listener@NAME.",
    "/var/lib/ews-listener": "The state of the service: the event journal and the state of mailboxes.",
}


def text(words: str) -> str:
    """Return one paragraph of plain text or Markdown as roff."""
    words = re.sub(r"\[([^]]+)]\([^)]+\)", r"\1", " ".join(words.split()))
    words = words.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    words = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", words)
    return words if words[:1] not in (".", "'") else rf"\&{words}"


def section(title: str) -> str:
    """Return the text below a heading of docs/CLI.md."""
    _, heading, rest = PAGE.partition(f"\n## {title}\n")
    assert heading, f"docs/CLI.md has no heading {title!r}"
    return rest.partition("\n## ")[0]


def rows(table: str) -> Iterator[list[str]]:
    """Yield the cells of each row of a table, its header included, without the separator line."""
    for line in table.splitlines():
        if line.startswith("|") and not set(line) <= set("|-"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the full name and the command of each visible leaf command below `command`."""
    for word, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            if getattr(below, "commands", None):
                yield from commands(below, f"{name}{word} ")
            else:
                yield f"{name}{word}", below


def describe(name: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    yield f".SS {text(name)}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield rf".B ews\-listener {text(name)}"
    yield text(usage)
    for paragraph in (command.help or "").split("\n\n"):
        yield ".PP"
        yield text(paragraph)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and not getattr(parameter, "hidden", False):
            yield ".TP"
            yield rf"\fB{text(record[0])}\fR"
            yield text(record[1]) or r"\&"


def page() -> Iterator[str]:
    yield f'.TH EWS\\-LISTENER 1 "" "ews\\-listener {text(__version__)}" "User Commands"'
    yield ".SH NAME"
    yield r"ews\-listener \- stream changes from Microsoft Exchange mailboxes to handlers"
    yield ".SH SYNOPSIS"
    yield r".B ews\-listener"
    yield r".I COMMAND"
    yield r".RI [ OPTION ]..."
    yield ".SH DESCRIPTION"
    yield text(app.info.help or "")
    yield ".SH COMMANDS"
    for name, command in commands(typer.main.get_command(app), ""):
        yield from describe(name, command)
    yield ".SH SIGNALS"
    for paragraph in section("Signals").strip().split("\n\n"):
        yield text(paragraph)
        yield ".PP"
    yield ".SH EXIT STATUS"
    for code, of, means in list(rows(section("Exit codes")))[1:]:
        yield ".TP"
        yield rf"\fB{text(code)}\fR ({text(of)})"
        yield text(means)
    yield ".SH ENVIRONMENT"
    yield ".TP"
    yield r"\fBEWS_LISTENER_CONFIG\fR"
    yield r"The configuration file, if the option \fB\-\-config\fR is not given."
    yield ".SH FILES"
    for file, means in FILES.items():
        yield ".TP"
        yield rf"\fI{text(file)}\fR"
        yield text(means)
    yield ".SH SEE ALSO"
    yield r".BR systemctl (1),"
    yield r".BR journalctl (1),"
    yield "and the pages in /usr/share/doc/ews\\-listener/docs."


if __name__ == "__main__":
    print("\n".join(page()))
