"""Writer for log lines that never blocks on a slow reader.

The thread that logs a line writes it at once if that does not block. Otherwise the line is queued in a backlog of at
most `MAX_BACKLOG` bytes, which a background thread writes in order as soon as there is room. Lines that do not fit
into the backlog, or cannot be written (the reader is gone, the disk is full), are dropped and counted. A separate
line, `log.dropped`, reports their number as soon as writing works again.

A pipe is opened a second time with O_NONBLOCK. The flag belongs to the open file description, which the process
shares with its parent and with other processes that have the same standard error.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, Protocol, TextIO, TypeVar

MAX_BACKLOG: Final = 4 << 20
"""Maximum size of the backlog in bytes."""
EXIT_TIMEOUT: Final = 5.0
"""Maximum seconds that the exit of the process waits for a backlog that is still being read."""
_POLL: Final = 0.2  # maximum seconds between two attempts of the background thread
_STALLED: Final = 0.5  # flush() returns after this many seconds without progress

T = TypeVar("T")


class Channel(Protocol[T]):
    """Destination of lines. Only `wait` blocks."""

    def send(self, line: T) -> T | None:
        """Write the line, and return its unwritten rest or None.

        Raises BlockingIOError if there is no room for any of it, and OSError if it cannot be written and is lost.
        """

    def wait(self, seconds: float) -> None:
        """Return when there may be room, or after `seconds`."""

    def size(self, line: T) -> int: ...

    def close(self) -> None: ...


class QueueWriter(Generic[T]):
    """One channel with its backlog and its count of dropped lines. `report` returns the line that reports the count.

    write() and flush() never raise, and may be called from any thread.
    """

    def __init__(
        self, channel: Channel[T], report: Callable[[int], T], max_backlog: int = MAX_BACKLOG
    ) -> None:
        self._channel = channel
        self._report = report
        self._max_backlog = max_backlog
        self._lock = threading.RLock()
        self._writing = False
        self._backlog: deque[tuple[T, int]] = deque()
        self._size = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def dropped(self) -> int:
        """Lines that were dropped and not reported yet."""
        return self._dropped

    def take_dropped(self) -> int:
        """Return and reset the count, so that the caller reports it."""
        with self._lock:
            count, self._dropped = self._dropped, 0
            return count

    def write(self, line: T) -> None:
        """Write the line, or queue it, or drop and count it."""
        with self._lock:
            if self._writing:  # reentrant call: a destructor logs during a write by the same thread
                self._put(line)
                return
            self._writing = True
            try:
                if self._backlog:
                    self._drain()
                self._report_drops()
                self._put(line)
                self._drain()
                if self._backlog and not self._closed:
                    self._start_thread()
            finally:
                self._writing = False

    def flush(self, seconds: float) -> None:
        """Write the backlog. Returns after `seconds` at most, or earlier if the reader makes no progress."""
        deadline = time.monotonic() + seconds
        last_progress = time.monotonic()
        while True:
            with self._lock:
                before = self._size
                self._write_backlog()
                remaining = self._size
            now = time.monotonic()
            if not remaining:
                return
            if remaining < before:
                last_progress = now
            if now >= deadline or now >= last_progress + _STALLED:
                return
            self._channel.wait(min(_POLL, deadline - now))

    def close(self) -> None:
        """Close the channel and drop the backlog."""
        with self._lock:
            self._closed = True
            self._backlog.clear()
            self._size = 0
            self._channel.close()

    # The methods below run with the lock held. `count` is the number of lines that a line stands for: a report of
    # dropped lines that is dropped itself must restore their count.

    def _put(self, line: T, count: int = 1) -> None:
        size = self._channel.size(line)
        if self._closed or (self._backlog and self._size + size > self._max_backlog):
            self._dropped += count
            return
        self._backlog.append((line, count))
        self._size += size

    def _report_drops(self) -> None:
        """Write the report in place of the dropped lines."""
        if self._dropped and self._size <= self._max_backlog // 2:
            count, self._dropped = self._dropped, 0
            self._put(self._report(count), count)
            self._drain()

    def _write_backlog(self) -> None:
        if self._writing or self._closed:
            return
        self._writing = True
        try:
            self._drain()
            if not self._backlog:
                self._report_drops()
        finally:
            self._writing = False

    def _drain(self) -> None:
        """Write lines until there is no room. A line that cannot be written is dropped."""
        while self._backlog:
            line, count = self._backlog[0]
            try:
                rest = self._channel.send(line)
            except BlockingIOError:
                return
            except Exception:  # noqa: BLE001  (no error of logging may stop the service)
                rest = None
                self._dropped += count
            self._size -= self._channel.size(line)
            if rest is None:
                self._backlog.popleft()
            else:
                self._backlog[0] = rest, count
                self._size += self._channel.size(rest)

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # too many threads, or the interpreter is shutting down
                self._thread = None

    def _work(self) -> None:
        while True:
            self._channel.wait(_POLL)
            with self._lock:
                self._write_backlog()
                if not self._backlog or self._closed:
                    self._thread = None
                    return


class StreamChannel:
    """Channel to a stream without a file descriptor, as in tests. Raises ValueError if it is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, line: bytes) -> None:
        self._stream.buffer.write(line)
        self._stream.buffer.flush()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def size(self, line: bytes) -> int:
        return len(line)

    def close(self) -> None:
        """The stream belongs to the caller."""


class DescriptorChannel:
    """Channel to a file descriptor that the caller owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._nonblocking: int | None = None  # the same file, opened again without blocking
        self._socket: socket.socket | None = None
        mode = os.fstat(descriptor).st_mode
        self._may_block = stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(descriptor))
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif self._may_block:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with suppress(OSError):  # no /proc, a pipe of another user, or no reader
                self._nonblocking = os.open(f"/proc/self/fd/{descriptor}", flags)
        self._partial = False  # a part of the current line has been written
        self._torn = False  # the last line in the output is incomplete

    def send(self, line: bytes) -> bytes | None:
        if self._torn:
            line = b"\n" + line
        try:
            written = self._write(line)
        except BlockingIOError:
            raise
        except OSError:
            # The written part stays in the output, so the next line must start with a newline.
            self._torn, self._partial = self._torn or self._partial, False
            raise
        self._torn = self._torn and not written
        rest = line[written:]
        self._partial = bool(rest)
        return rest or None

    def wait(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._descriptor if self._nonblocking is None else self._nonblocking, select.POLLOUT)
        with suppress(OSError):
            poll.poll(seconds * 1000)

    def size(self, line: bytes) -> int:
        return len(line)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._nonblocking is not None:
            os.close(self._nonblocking)
            self._nonblocking = None

    def _write(self, line: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._nonblocking is not None:
            return os.write(self._nonblocking, line)
        if self._may_block:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
            line = line[: select.PIPE_BUF]  # a writable pipe has room for this many bytes (pipe(7))
        return os.write(self._descriptor, line)


def channel_of(stream: TextIO) -> Channel[bytes]:
    """Flush the stream's own buffer and return a channel to the stream."""
    with suppress(OSError, ValueError):
        stream.flush()
    try:
        return DescriptorChannel(stream.fileno())
    except (OSError, ValueError):
        return StreamChannel(stream)


def print_errors(text: str, stream: TextIO | None = None) -> None:
    """Write text to standard error without the log, and without blocking on a full pipe."""
    stream = stream or sys.stderr
    if stream is None:  # it was closed when the process started
        return
    writer = QueueWriter(channel_of(stream), lambda count: f"{count} lines were dropped\n".encode())
    writer.write(text.encode("utf-8", "backslashreplace"))
    writer.flush(EXIT_TIMEOUT)
    writer.close()
