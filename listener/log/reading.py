"""Lines of the log, read again to be shown to people (pure).

A line may be JSON as the daemon writes it, or an entry of systemd's journal as `journalctl -o json` gives it. What is
neither is shown as it is.
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
ABOUT = ("mailbox", "handler", "group")
COLOURS = {"debug": "dim", "info": "green", "warning": "yellow", "error": "bold red", "critical": "bold red"}
EVENT_WIDTH = 24
ABOUT_WIDTH = 32
_BY_PRIORITY = {str(number): level for level, number in PRIORITIES.items()} | {
    "5": "info",
    "1": "error",
    "0": "error",
}


class Line(NamedTuple):
    """One line. `time` is None if it tells none."""

    time: datetime | None
    level: str
    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be shown: all that is set must agree. `event` is a glob, `level` the least, `since` a moment."""

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
        asked = {"mailbox": self.mailbox, "group": self.group, "handler": self.handler}
        return all(
            value is None or str(line.fields.get(key, "")).casefold() == value.casefold()
            for key, value in asked.items()
        )

    def takes_others(self) -> bool:
        """Whether what is no line of the log is to be shown: unless only certain lines are asked for."""
        return self.mailbox is self.group is self.handler is self.event is None


@dataclass(slots=True)
class Reading:
    """Reads lines and gives what is to be shown of them."""

    wanted: Wanted = field(default_factory=Wanted)

    def show(self, text: str) -> Text | None:
        """None if the line is not wanted. Takes anything, and raises nothing."""
        found = parse(text)
        if isinstance(found, Line):
            return shown(found) if self.wanted.matches(found) else None
        return Text(printable(found)) if self.wanted.takes_others() else None


def parse(text: str) -> Line | str:
    """The line, or the text that it is if it is none."""
    text = text.rstrip("\r\n")
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(entry, dict):
        return text
    if "MESSAGE" in entry and "__REALTIME_TIMESTAMP" in entry:
        return _of_journal(entry)
    if not isinstance(entry.get("event"), str):
        return text
    fields = {key: value for key, value in entry.items() if key not in ("time", "level", "event")}
    return Line(_moment(entry.get("time")), _level(entry.get("level")), entry["event"], fields)


def shown(line: Line) -> Text:
    """The line in columns: time, level, event, whom it is about, and the rest as key=value."""
    fields = dict(line.fields)
    exception = fields.pop("exception", None)
    about = next((key for key in ABOUT if key in fields), None)
    text = Text(no_wrap=False)
    time = "" if line.time is None else f"{line.time:%m-%d %H:%M:%S}.{line.time.microsecond // 1000:03}"
    text.append(f"{time:<18}  ", style="dim")
    text.append(f"{line.level:<7}  ", style=COLOURS[line.level])
    text.append(f"{printable(line.event):<{EVENT_WIDTH}}", style="bold")
    text.append(f"  {'' if about is None else _value(fields.pop(about)):<{ABOUT_WIDTH}}", style="cyan")
    for key, value in fields.items():
        text.append(f"  {printable(key)}=", style="dim")
        text.append(_value(value))
    text.rstrip()
    if exception is not None:
        for each in str(exception).splitlines():
            text.append(f"\n    {printable(each)}", style="dim")
    return text


def _value(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _of_journal(entry: Mapping[str, Any]) -> Line | str:
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
        moment = datetime.fromtimestamp(int(str(entry["__REALTIME_TIMESTAMP"])) / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        moment = None
    return Line(moment, level, event, fields)


def _journal_text(value: Any) -> str:
    """A field as journalctl gives it: text, bytes as a list of numbers, several values as a list, or null."""
    if isinstance(value, list):
        if all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
            return bytes(value).decode("utf-8", "replace")
        return ", ".join(map(_journal_text, value))
    return "" if value is None else str(value)


def _level(value: Any) -> str:
    return value if value in LEVELS else "info"


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
