"""The native protocol of the systemd journal, tested against a receiver on a real socket."""

import array
import io
import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from listener import log
from listener.log import journald


def decode(entry: bytes) -> list[tuple[str, str]]:
    """Decode an entry like journald."""
    fields = []
    while entry:
        head, _, entry = entry.partition(b"\n")
        key, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", entry[:8])
            value, end, entry = entry[8 : 8 + length], entry[8 + length : 9 + length], entry[9 + length :]
            assert end == b"\n"
        fields.append((key.decode(), value.decode()))
    return fields


class Journald:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(5)

    def read(self) -> dict[str, str]:
        data, rights, _flags, _address = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _level, _kind, content in rights:
            (descriptor,) = array.array("i", content)
            with open(descriptor, "rb") as file:
                file.seek(0)
                data = file.read()
        return dict(decode(data))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journald]:
    server = Journald(tmp_path / "socket")
    yield server
    server.socket.close()


def test_entry_has_one_field_per_value(journal: Journald) -> None:
    log.configure("info", "journal", journal=journal.path)
    structlog.get_logger().bind(group="g/1").warning(
        "stream.silent", mailbox="alice@example.com", duration=1.5, codes={"a": 1}, password="hush"
    )
    assert journal.read() == {
        "MESSAGE": 'stream.silent group=g/1 mailbox=alice@example.com duration=1.5 codes={"a":1} password=***',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "ews-listener",
        "EWS_EVENT": "stream.silent",
        "EWS_GROUP": "g/1",
        "EWS_MAILBOX": "alice@example.com",
        "EWS_DURATION": "1.5",
        "EWS_CODES": '{"a":1}',
        "EWS_PASSWORD": "***",
    }


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3")]
)
def test_priorities(journal: Journald, level: str, priority: str) -> None:
    log.configure("debug", "journal", journal=journal.path)
    getattr(structlog.get_logger(), level)("a.b")
    assert journal.read()["PRIORITY"] == priority


def test_traceback_follows_the_message(journal: Journald) -> None:
    log.configure("info", "journal", journal=journal.path)
    structlog.get_logger().error("group.crashed", exc_info=ValueError("boom"))
    entry = journal.read()
    assert entry["MESSAGE"].startswith("group.crashed\nTraceback") or "ValueError: boom" in entry["MESSAGE"]
    assert entry["EWS_EXCEPTION"] in entry["MESSAGE"]


def test_large_entry_is_sent_as_a_file(journal: Journald) -> None:
    log.configure("info", "journal", journal=journal.path)
    # Larger than any socket buffer that an unprivileged process can set.
    large = [["x" * 4000] * 1000] * 5
    structlog.get_logger().info("a.b", text=large)
    assert json.loads(journal.read()["EWS_TEXT"]) == large


def test_without_a_journal_lines_go_to_standard_error(tmp_path: Path) -> None:
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", "journal", stream, journal=str(tmp_path / "missing"))
    structlog.get_logger().info("a.b", mailbox="a@b.c")
    line = json.loads(buffer.getvalue())
    assert (line["event"], line["mailbox"]) == ("a.b", "a@b.c")
    stream.close()


def test_standard_error_connected_to_the_journal_is_detected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, journal: Journald
) -> None:
    with (tmp_path / "out").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert not journald.is_journal(stream, {})
        assert not journald.is_journal(stream, {"JOURNAL_STREAM": "nonsense"})
        assert not journald.is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert journald.is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.configure("info", "auto", stream, journal=journal.path)
        structlog.get_logger().info("a.b")
    assert journal.read()["EWS_EVENT"] == "a.b"
    assert not journald.is_journal(stream, {"JOURNAL_STREAM": "1:2"})  # the stream is closed


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


keys = st.text(min_size=1, max_size=80)  # filtered below: different keys must give different field names


@given(
    st.dictionaries(keys, values, max_size=5).filter(lambda d: len({*map(journald.name, d)}) == len(d)),
    st.text(),
)
def test_any_line_can_be_decoded(fields: dict[str, Any], event: str) -> None:
    line = fields | {"event": event, "level": "info"}
    found = decode(journald.encode(line))
    assert all(re.fullmatch("[A-Z][A-Z0-9_]{0,63}", key) for key, _ in found)
    assert ("EWS_EVENT", event.encode("utf-8", "replace").decode()) in found
    for key, value in fields.items():
        if isinstance(value, str) and journald.name(key) not in ("EWS_EVENT", "EWS_LEVEL", "EWS_TIME"):
            assert any(text == value.encode("utf-8", "replace").decode() for _, text in found)
