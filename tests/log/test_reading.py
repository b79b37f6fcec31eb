"""The log as people see it: whatever a line holds, it is shown, and never harms."""

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from listener.log import journald
from listener.log.reading import LEVELS, Line, Reading, Wanted, parse

LINE = {
    "time": "2026-03-01T12:00:00.123Z", "level": "warning", "event": "stream.silent", "group": "g/1",
    "duration": 512.4, "text": "nothing heard",
}  # fmt: skip


def shown(line: object, **wanted: Any) -> str | None:
    text = Reading(Wanted(**wanted)).show(line if isinstance(line, str) else json.dumps(line))
    return None if text is None else text.plain


def test_columns_stand_below_each_other() -> None:
    first = shown(LINE)
    second = shown(LINE | {"level": "info", "event": "group.started", "duration": None})
    assert first == (
        "03-01 12:00:00.123  warning  stream.silent             g/1                               duration=512.4"
        "  text=nothing heard"
    )
    assert second is not None
    assert second.index("g/1") == first.index("g/1")
    assert second.index("group.started") == first.index("stream.silent")


def test_whom_a_line_is_about_the_mailbox_before_its_group() -> None:
    line = shown(LINE | {"mailbox": "a@b.c"})
    assert line is not None
    assert line.index("a@b.c") < line.index("group=g/1")


def test_a_traceback_stands_below() -> None:
    line = shown(LINE | {"exception": "Traceback\n  File x\nValueError: boom"})
    assert line is not None
    assert line.splitlines()[1:] == ["    Traceback", "      File x", "    ValueError: boom"]


@pytest.mark.parametrize(
    ("wanted", "seen"),
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
def test_only_what_is_wanted_is_shown(wanted: dict[str, Any], seen: bool) -> None:
    assert (shown(LINE, **wanted) is not None) is seen


@pytest.mark.parametrize(
    "text", ["Segmentation fault", "{}", "[]", "3", '{"event": 3}', '{"event"', "", "[" * 9999]
)
def test_what_is_no_line_of_the_log_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text
    assert shown(text + "\n") == text
    assert shown(text, level="error") == text
    assert shown(text, group="g") is None


def test_nothing_in_a_line_moves_the_cursor() -> None:
    for line in (LINE | {"text": "\x1b[2J\r\u202e", "\x1b]0;": "x"}, "\x1b[31mred"):
        text = shown(line)
        assert text is not None
        assert not [sign for sign in text if unicodedata.category(sign) in ("Cc", "Cf", "Cs")]


def test_an_entry_of_the_journal() -> None:
    entry = {
        "__REALTIME_TIMESTAMP": "1772366400123000", "PRIORITY": "4", "MESSAGE": "…", "_PID": "1",
        "EWS_EVENT": "stream.silent", "EWS_GROUP": "g/1", "EWS_DURATION": "512.4",
        "EWS_TEXT": list(b"nothing heard"),
    }  # fmt: skip
    assert shown(entry) == shown(LINE)


def test_what_others_wrote_into_the_journal_is_shown_as_it_is() -> None:
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
def test_whatever_comes_is_shown(text: str) -> None:
    found = Reading().show(text)
    assert found is not None
    found.plain.encode()
    assert not {sign for sign in found.plain if unicodedata.category(sign) == "Cc"} - {"\n", "\t"}
    Reading(Wanted(level="warning", mailbox="a@b.c", event="x*", since=datetime.now(UTC))).show(text)


@given(
    st.sampled_from(LEVELS),
    st.from_regex(r"[a-z]+\.[a-z_]+", fullmatch=True),
    st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True), st.text(), max_size=4),
)
def test_what_is_logged_is_read_from_json_and_from_the_journal_alike(
    level: str, event: str, fields: dict[str, str]
) -> None:
    fields = {key: value for key, value in fields.items() if key not in ("time", "level", "event")}
    line = {"level": level, "event": event, **fields}
    direct = parse(json.dumps(line))
    entry = {journald.name(key): value for key, value in line.items() if key != "level"}
    entry |= {"MESSAGE": "…", "__REALTIME_TIMESTAMP": "0", "PRIORITY": str(journald.PRIORITIES[level])}
    by_journal = parse(json.dumps(entry))
    assert isinstance(direct, Line)
    assert isinstance(by_journal, Line)
    assert by_journal._replace(time=None) == direct == Line(None, level, event, fields)
