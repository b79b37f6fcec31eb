"""Display of log lines: any line is shown, and control characters are escaped."""

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from listener.log import journald
from listener.log.reader import LEVELS, Line, LogReader, Selection, parse

LINE = {
    "time": "2026-03-01T12:00:00.123Z", "level": "warning", "event": "stream.silent", "group": "g/1",
    "duration": 512.4, "text": "no data received",
}  # fmt: skip


def shown(line: object, **selection: Any) -> str | None:
    text = LogReader(Selection(**selection)).render(line if isinstance(line, str) else json.dumps(line))
    return None if text is None else text.plain


def test_columns_are_aligned() -> None:
    first = shown(LINE)
    second = shown(LINE | {"level": "info", "event": "group.started", "duration": None})
    assert first == (
        "03-01 12:00:00.123  warning  stream.silent             g/1                               duration=512.4"
        "  text=no data received"
    )
    assert second is not None
    assert second.index("g/1") == first.index("g/1")
    assert second.index("group.started") == first.index("stream.silent")


def test_subject_is_the_mailbox_rather_than_its_group() -> None:
    line = shown(LINE | {"mailbox": "a@b.c"})
    assert line is not None
    assert line.index("a@b.c") < line.index("group=g/1")


def test_traceback_follows_the_line() -> None:
    line = shown(LINE | {"exception": "Traceback\n  File x\nValueError: boom"})
    assert line is not None
    assert line.splitlines()[1:] == ["    Traceback", "      File x", "    ValueError: boom"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"group": "G/1"}, True),
        ({"group": "g/2"}, False),
        ({"mailbox": "a@b.c"}, False),
        ({"event": "stream.*"}, True),
        ({"event": "group.*"}, False),
        ({"level": "warning"}, True),
        ({"level": "error"}, False),
        ({"since": datetime(2026, 3, 1, 12, tzinfo=UTC)}, True),
        ({"since": datetime(2026, 3, 1, 13, tzinfo=UTC)}, False),
        ({"group": "g/1", "event": "stream.*", "level": "info"}, True),
        ({"group": "g/1", "event": "stream.*", "level": "error"}, False),
    ],
)
def test_only_selected_lines_are_shown(selection: dict[str, Any], expected: bool) -> None:
    assert (shown(LINE, **selection) is not None) is expected


@pytest.mark.parametrize(
    "text", ["Segmentation fault", "{}", "[]", "3", '{"event": 3}', '{"event"', "", "[" * 9999]
)
def test_other_text_is_expectedunchanged(text: str) -> None:
    assert shown(text) == text
    assert shown(text + "\n") == text
    assert shown(text, level="error") == text
    assert shown(text, group="g") is None


def test_control_characters_are_escaped() -> None:
    for line in (LINE | {"text": "\x1b[2J\r\u202e", "\x1b]0;": "x"}, "\x1b[31mred"):
        text = shown(line)
        assert text is not None
        assert not [sign for sign in text if unicodedata.category(sign) in ("Cc", "Cf", "Cs")]


def test_journal_entry() -> None:
    entry = {
        "__REALTIME_TIMESTAMP": "1772366400123000", "PRIORITY": "4", "MESSAGE": "…", "_PID": "1",
        "EWS_EVENT": "stream.silent", "EWS_GROUP": "g/1", "EWS_DURATION": "512.4",
        "EWS_TEXT": list(b"no data received"),
    }  # fmt: skip
    assert shown(entry) == shown(LINE)


def test_journal_entry_of_another_program_is_expectedunchanged() -> None:
    entry = {"__REALTIME_TIMESTAMP": "1", "MESSAGE": "Started ews-listener.service."}
    assert shown(entry) == "Started ews-listener.service."


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = ["time", "level", "event", "mailbox", "group", "exception", "MESSAGE", "__REALTIME_TIMESTAMP", "PRIORITY",
         "EWS_EVENT", "EWS_TEXT"]  # fmt: skip


@given(st.text() | st.dictionaries(st.sampled_from(NAMES) | st.text(), json_values).map(json.dumps))
@example('{"event": "a.b", "text": "\\ud800"}')
@example('{"__REALTIME_TIMESTAMP": "9' + "9" * 400 + '", "MESSAGE": "", "EWS_EVENT": "x"}')
@example('{"event": "a.b", "n": ' + "9" * 5000 + "}")
def test_any_text_is_shown(text: str) -> None:
    found = LogReader().render(text)
    assert found is not None
    found.plain.encode()
    assert not {sign for sign in found.plain if unicodedata.category(sign) == "Cc"} - {"\n", "\t"}
    LogReader(Selection(level="warning", mailbox="a@b.c", event="x*", since=datetime.now(UTC))).render(text)


@given(
    st.sampled_from(LEVELS),
    st.from_regex(r"[a-z]+\.[a-z_]+", fullmatch=True),
    st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True), st.text(), max_size=4),
)
def test_json_and_journal_give_the_same_line(level: str, event: str, fields: dict[str, str]) -> None:
    fields = {key: value for key, value in fields.items() if key not in ("time", "level", "event")}
    line = {"level": level, "event": event, **fields}
    direct = parse(json.dumps(line))
    entry = {journald.name(key): value for key, value in line.items() if key != "level"}
    entry |= {"MESSAGE": "…", "__REALTIME_TIMESTAMP": "0", "PRIORITY": str(journald.PRIORITIES[level])}
    by_journal = parse(json.dumps(entry))
    assert isinstance(direct, Line)
    assert isinstance(by_journal, Line)
    assert by_journal._replace(time=None) == direct == Line(None, level, event, fields)
