"""Parsing and display of log lines, for `ews-listener tail` (pure).

A line is JSON as the daemon writes it, or an entry of the systemd journal as `journalctl -o json` prints it. Any
other line is shown unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from rich.text import Text

from listener.log.journald import PREFIX, PRIORITIES
from listener.text import printable

LEVELS = ("debug", "info", "warning", "error", "critical")
SUBJECTS = ("mailbox", "handler", "group")
COLORS = {"debug": "dim", "info": "green", "warning": "yellow", "error": "bold red", "critical": "bold red"}
EVENT_WIDTH = 24
SUBJECT_WIDTH = 32
_BY_PRIORITY = {str(number): level for level, number in PRIORITIES.items()} | {
    "5": "info",
    "1": "error",
    "0": "error",
}


class Line(NamedTuple):
    """A parsed line. `time` is None if it has none."""

    time: datetime | None
    level: str
    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Filter for lines. All set values must match. `event` is a glob, `level` the minimum, `since` the start."""

    mailbox: str | None = None
    group: str | None = None
    handler: str | None = None
    event: str | None = None
    level: str = "debug"
    since: datetime | None = None

    def matches(self, line: Line) -> bool:
        if LEVELS.index(line.level) < LEVELS.index(self.level):
            return False
        if self.since is not None and line.time is not None and line.time < self.since:
            return False
        if self.event is not None and not fnmatchcase(line.event, self.event):
            return False
        subjects = {"mailbox": self.mailbox, "group": self.group, "handler": self.handler}
        return all(
            value is None or str(line.fields.get(key, "")).casefold() == value.casefold()
            for key, value in subjects.items()
        )

    def includes_other_text(self) -> bool:
        """Return whether to show text that is not a log line: only without a filter for subjects or events."""
        return self.mailbox is self.group is self.handler is self.event is None


@dataclass(slots=True)
class LogReader:
    """Renders the selected lines."""

    selection: Selection = field(default_factory=Selection)

    def render(self, text: str) -> Text | None:
        """Return the line for the terminal; None if it is not selected. Accepts any text and never raises."""
        line = parse(text)
        if isinstance(line, Line):
            return format_line(line) if self.selection.matches(line) else None
        return Text(printable(line)) if self.selection.includes_other_text() else None


def parse(text: str) -> Line | str:
    """Return the parsed line, or the text if it is not a log line."""
    text = text.rstrip("\r\n")
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(entry, dict):
        return text
    if "MESSAGE" in entry and "__REALTIME_TIMESTAMP" in entry:
        return _parse_journal_entry(entry)
    if not isinstance(entry.get("event"), str):
        return text
    fields = {key: value for key, value in entry.items() if key not in ("time", "level", "event")}
    return Line(_parse_time(entry.get("time")), _level(entry.get("level")), entry["event"], fields)


def format_line(line: Line) -> Text:
    """Return the line in columns: time, level, event, subject, and the other fields as key=value."""
    fields = dict(line.fields)
    exception = fields.pop("exception", None)
    subject = next((key for key in SUBJECTS if key in fields), None)
    text = Text(no_wrap=False)
    time = "" if line.time is None else f"{line.time:%m-%d %H:%M:%S}.{line.time.microsecond // 1000:03}"
    text.append(f"{time:<18}  ", style="dim")
    text.append(f"{line.level:<7}  ", style=COLORS[line.level])
    text.append(f"{printable(line.event):<{EVENT_WIDTH}}", style="bold")
    text.append(f"  {'' if subject is None else _value(fields.pop(subject)):<{SUBJECT_WIDTH}}", style="cyan")
    for key, value in fields.items():
        text.append(f"  {printable(key)}=", style="dim")
        text.append(_value(value))
    text.rstrip()
    if exception is not None:
        for traceback_line in str(exception).splitlines():
            text.append(f"\n    {printable(traceback_line)}", style="dim")
    return text


def _value(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _parse_journal_entry(entry: Mapping[str, Any]) -> Line | str:
    event = _journal_text(entry.get(f"{PREFIX}EVENT"))
    if not event:
        return _journal_text(entry["MESSAGE"])
    fields = {
        key.removeprefix(PREFIX).lower(): _journal_text(value)
        for key, value in entry.items()
        if key.startswith(PREFIX) and key != f"{PREFIX}EVENT"
    }
    level = _BY_PRIORITY.get(str(entry.get("PRIORITY")), "info")
    try:
        time = datetime.fromtimestamp(int(str(entry["__REALTIME_TIMESTAMP"])) / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        time = None
    return Line(time, level, event, fields)


def _journal_text(value: Any) -> str:
    """Return the text of a field. journalctl prints text, bytes as a list of numbers, several values as a list, or
    null."""
    if isinstance(value, list):
        if all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
            return bytes(value).decode("utf-8", "replace")
        return ", ".join(map(_journal_text, value))
    return "" if value is None else str(value)


def _level(value: Any) -> str:
    return value if value in LEVELS else "info"


def _parse_time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
