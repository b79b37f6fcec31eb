"""Log lines are written without blocking on the reader, in order, and none is lost while the reader reads."""

import fcntl
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from listener import log
from listener.log.queue_writer import DescriptorChannel, QueueWriter

PIPE = 65536


def report(count: int) -> bytes:
    return f"dropped {count}\n".encode()


class Scripted:
    """A channel that accepts lines, or raises the configured error."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.error: OSError | None = None

    def send(self, line: bytes) -> bytes | None:
        if self.error is not None:
            raise self.error
        self.sent.append(line)
        return None

    def wait(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.01))

    def size(self, line: bytes) -> int:
        return len(line)

    def close(self) -> None:
        pass


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
    try:
        yield reading, writing
    finally:
        for end in (reading, writing):
            with suppress(OSError):
                os.close(end)


def read_all(descriptor: int) -> bytes:
    found = b""
    while chunk := os.read(descriptor, 1 << 16):
        found += chunk
    return found


def test_failed_lines_are_dropped_counted_and_reported_in_their_place() -> None:
    writer = QueueWriter(channel := Scripted(), report)
    writer.write(b"1\n")
    channel.error = OSError(28, "No space left on device")
    writer.write(b"2\n")
    writer.write(b"3\n")
    channel.error = None
    writer.write(b"4\n")
    writer.write(b"5\n")
    assert channel.sent == [b"1\n", b"dropped 2\n", b"4\n", b"5\n"]


def test_failed_report_keeps_the_count() -> None:
    writer = QueueWriter(channel := Scripted(), report)
    channel.error = BrokenPipeError()
    for _ in range(5):
        writer.write(b"x\n")
    assert writer.dropped == 5
    channel.error = None
    writer.flush(1)
    assert channel.sent == [b"dropped 5\n"]


def test_backlog_is_limited_and_keeps_its_order() -> None:
    writer = QueueWriter(channel := Scripted(), report, max_backlog=100)
    channel.error = BlockingIOError()
    for number in range(50):
        writer.write(b"%08d\n" % number)
    channel.error = None
    writer.flush(1)
    assert channel.sent == [*(b"%08d\n" % number for number in range(11)), b"dropped 39\n"]


def test_full_pipe_does_not_block() -> None:
    with pipe() as (reading, writing):
        writer = QueueWriter(DescriptorChannel(writing), report)
        lines = [b"%06d %s\n" % (number, b"x" * 100) for number in range(5000)]
        started_at = time.monotonic()
        for line in lines:
            writer.write(line)
        assert time.monotonic() - started_at < 5
        assert not os.get_blocking(reading) or os.get_blocking(writing), (
            "the flags of the shared file description are unchanged"
        )
        thread = threading.Thread(target=lambda: found.append(read_all(reading)))
        found: list[bytes] = []
        thread.start()
        writer.flush(10)
        writer.close()
        os.close(writing)
        thread.join()
    assert found[0] == b"".join(lines), "complete, once, in order"


def test_background_thread_writes_all_lines_to_a_slow_reader() -> None:
    with pipe() as (reading, writing):
        writer = QueueWriter(DescriptorChannel(writing), report)
        lines = [b"%06d %s\n" % (number, b"x" * 5000) for number in range(100)]
        for line in lines:
            writer.write(line)
        found = b""
        while len(found) < sum(map(len, lines)):
            found += os.read(reading, 4096)  # only the background thread is still writing
        assert found == b"".join(lines)
        writer.close()


def test_flush_does_not_wait_for_a_stopped_reader() -> None:
    with pipe() as (_reading, writing):
        writer = QueueWriter(DescriptorChannel(writing), report)
        writer.write(b"x" * 200_000)
        started_at = time.monotonic()
        writer.flush(30)
        assert time.monotonic() - started_at < 5
        writer.close()


def test_closed_pipe_drops_lines() -> None:
    with pipe() as (reading, writing):
        writer = QueueWriter(DescriptorChannel(writing), report)
        os.close(reading)
        writer.write(b"x\n")
        assert writer.dropped == 1
        writer.close()


def test_full_disk_drops_lines() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = QueueWriter(DescriptorChannel(descriptor), report)
    writer.write(b"x\n")
    writer.write(b"x\n")
    assert writer.dropped == 2
    os.close(descriptor)
    writer.write(b"closed\n")
    assert writer.dropped == 3


def test_socket() -> None:
    here, there = socket.socketpair()
    with here, there:
        writer = QueueWriter(DescriptorChannel(here.fileno()), report)
        writer.write(b"x" * 1_000_000 + b"\n")
        found = b""
        while not found.endswith(b"\n"):
            found += there.recv(1 << 16)
        assert len(found) == 1_000_001
        there.close()
        writer.write(b"gone\n")
        writer.write(b"gone\n")
        assert writer.dropped == 2
        writer.close()


def test_line_after_an_incomplete_line_starts_with_a_newline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    room, write = 5, os.write

    def limited(number: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        written = write(number, data[:room])
        room -= written
        return written

    writer = QueueWriter(DescriptorChannel(descriptor), report)
    monkeypatch.setattr(os, "write", limited)
    writer.write(b"123456789\n")
    monkeypatch.undo()
    writer.write(b"next\n")
    os.close(descriptor)
    assert (tmp_path / "log").read_bytes() == b"12345\ndropped 1\nnext\n"


def test_reentrant_write_does_not_deadlock() -> None:
    class Reentrant(Scripted):
        def send(self, line: bytes) -> bytes | None:
            if line == b"first\n":
                writer.write(b"second\n")
            return super().send(line)

    writer = QueueWriter(channel := Reentrant(), report)
    writer.write(b"first\n")
    assert channel.sent == [b"first\n", b"second\n"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_number_of_dropped_lines_is_logged(tmp_path: Path, format_: Any) -> None:
    with (tmp_path / "log").open("w") as stream:
        log.configure("info", format_, stream)
        full = os.open("/dev/full", os.O_WRONLY)
        saved = os.dup(stream.fileno())
        os.dup2(full, stream.fileno())
        structlog.get_logger().info("a.lost")
        structlog.get_logger().info("a.lost")
        os.dup2(saved, stream.fileno())
        structlog.get_logger().info("a.next")
        log.close()
        os.close(full)
        os.close(saved)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert "log.dropped" in first
    assert "a.next" in second
    if format_ == "json":
        assert json.loads(first)["count"] == 2


class Evil:
    def __repr__(self) -> str:
        raise SystemExit(3)

    __str__ = __repr__


class EvilError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


deep: Any = []
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize(
    "value",
    [Evil(), {Evil(): 1}, EvilError(), "\ud800", deep, 10**5000, "x" * 10_000_000, b"\xff" * 100_000],
    ids=["object", "key", "exception", "surrogate", "deep", "integer", "large", "bytes"],
)
def test_logger_never_raises(format_: Any, value: Any) -> None:
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", format_, stream)
    structlog.get_logger().warning("a.b", value=value)
    try:
        raise EvilError(value)
    except EvilError as error:
        structlog.get_logger().warning("a.c", exc_info=error)
    lines = buffer.getvalue()
    assert b"a.b" in lines
    assert b"a.c" in lines
    assert b"EvilError" in lines
    assert len(lines) < 60_000
    stream.close()


def test_control_characters_are_escaped() -> None:
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", "console", stream)
    evil = "a\x1b[2J\x9b31m\u202eb\nFAKE LINE\r"
    try:
        raise ValueError(evil)
    except ValueError as error:
        structlog.get_logger().warning("a.b", text=evil, table={evil: [evil]}, exc_info=error)
    text = buffer.getvalue().decode()
    assert not set(text) & set("\x1b\x9b\u202e\r")
    assert "\nFAKE" not in text.partition("Traceback")[0]
    log.configure("info", "json", stream)
    buffer.truncate(0)
    buffer.seek(0)
    structlog.get_logger().warning("a.b", text=evil + "\x7f")
    text = buffer.getvalue().decode()
    assert not set(text) & set("\x1b\x9b\u202e\r\x7f")
    assert json.loads(text)["text"] == evil + "\x7f"
    stream.close()


def test_crashes_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, hook, getattr(sys, hook))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    stream = io.TextIOWrapper(buffer := io.BytesIO())
    log.configure("info", "json", stream)
    log.log_crashes()

    class Bad:
        def __del__(self) -> None:
            raise EvilError

    Bad()
    thread = threading.Thread(target=int, args=("x",), name="t")
    thread.start()
    thread.join()
    try:
        raise ValueError("the end")
    except ValueError as error:
        sys.excepthook(ValueError, error, None)
    lines = [json.loads(line) for line in buffer.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "python.unraisable",
        "python.thread_crashed",
        "listener.crashed",
    ]
    assert lines[1]["thread"] == "t"
    assert "ValueError: the end" in lines[2]["exception"]
    stream.close()
