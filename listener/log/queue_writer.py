"""Writes lines of the log without ever waiting for whoever reads them.

The thread that logs a line writes it at once if that does not block. Otherwise the line joins a backlog of at most
`MOST` bytes, which a thread writes as soon as there is room; lines stay in their order. What does not fit into the
backlog, or cannot be written (the reader is gone, the disk is full), is dropped and counted. A line of its own,
`log.dropped`, reports the number as soon as writing works again.

A pipe is opened a second time with O_NONBLOCK: the flag belongs to the open file description, which the process
shares with its parent and with others that have the same standard error.
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

MOST: Final = 4 << 20
"""Bytes of lines that wait."""
LAST: Final = 5.0
"""Seconds that the end of the process waits for a backlog that somebody still reads."""
_LOOK: Final = 0.2  # seconds between two looks of the thread whether there is room, where nothing wakes it
_STALLED: Final = 0.5  # seconds without progress after which flush() ends

T = TypeVar("T")


class Channel(Protocol[T]):
    """Where lines go. Neither method blocks, apart from `wait` for as long as it is told to."""

    def send(self, line: T) -> T | None:
        """Write the line; return what is left of it to be written, or None. Raise BlockingIOError if there is no room
        for any of it, and OSError if it cannot be written: it is then lost."""

    def wait(self, seconds: float) -> None:
        """Return when there may be room, or after so many seconds."""

    def size(self, line: T) -> int: ...

    def close(self) -> None: ...


class QueueWriter(Generic[T]):
    """One channel, its backlog and its count of dropped lines. `report` makes the line that tells the count.

    write() and flush() never raise, and may be called from any thread.
    """

    def __init__(self, channel: Channel[T], report: Callable[[int], T], most: int = MOST) -> None:
        self._channel = channel
        self._report = report
        self._most = most
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
        """Return the count for somebody else to report."""
        with self._lock:
            count, self._dropped = self._dropped, 0
            return count

    def write(self, line: T) -> None:
        """Write the line now, or later, or count it."""
        with self._lock:
            if self._writing:  # a destructor logs, in the midst of a write by this same thread
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
                    self._start()
            finally:
                self._writing = False

    def flush(self, seconds: float) -> None:
        """Write the backlog, for at most so many seconds, and only while somebody reads."""
        until = time.monotonic() + seconds
        moved = time.monotonic()
        while True:
            with self._lock:
                before = self._size
                self._turn()
                left = self._size
            now = time.monotonic()
            if not left:
                return
            if left < before:
                moved = now
            if now >= until or now >= moved + _STALLED:
                return
            self._channel.wait(min(_LOOK, until - now))

    def close(self) -> None:
        """Give up the channel; what has not been written is dropped."""
        with self._lock:
            self._closed = True
            self._backlog.clear()
            self._size = 0
            self._channel.close()

    # --- with the lock held

    def _put(self, line: T, worth: int = 1) -> None:
        size = self._channel.size(line)
        if self._closed or (self._backlog and self._size + size > self._most):
            self._dropped += worth
            return
        self._backlog.append((line, worth))
        self._size += size

    def _report_drops(self) -> None:
        """Stands where the dropped lines would have stood. If it is lost itself, its count is not."""
        if self._dropped and self._size <= self._most // 2:
            count, self._dropped = self._dropped, 0
            self._put(self._report(count), worth=count)
            self._drain()

    def _turn(self) -> None:
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
        """Write what there is room for. A line that cannot be written is dropped."""
        while self._backlog:
            line, worth = self._backlog[0]
            try:
                rest = self._channel.send(line)
            except BlockingIOError:
                return
            except Exception:  # noqa: BLE001  (whatever it is: no line is worth the service)
                rest = None
                self._dropped += worth
            self._size -= self._channel.size(line)
            if rest is None:
                self._backlog.popleft()
            else:
                self._backlog[0] = rest, worth
                self._size += self._channel.size(rest)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends
                self._thread = None

    def _work(self) -> None:
        while True:
            self._channel.wait(_LOOK)
            with self._lock:
                self._turn()
                if not self._backlog or self._closed:
                    self._thread = None
                    return


class StreamChannel:
    """Bytes to a stream that is no file of the system's, as tests have it. Raises ValueError if it is closed."""

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
    """Bytes to a file descriptor, which stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mine: int | None = None  # the same file, opened by us without blocking
        self._socket: socket.socket | None = None
        mode = os.fstat(descriptor).st_mode
        self._may_block = stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(descriptor))
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif self._may_block:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with suppress(OSError):  # no /proc, somebody else's pipe, or nobody reads it
                self._mine = os.open(f"/proc/self/fd/{descriptor}", flags)
        self._middle = self._torn = False

    def send(self, line: bytes) -> bytes | None:
        if self._torn:
            line = b"\n" + line
        try:
            written = self._write(line)
        except BlockingIOError:
            raise
        except OSError:
            # What was written of it stays there: the next line begins on a line of its own.
            self._torn, self._middle = self._torn or self._middle, False
            raise
        self._torn = self._torn and not written
        rest = line[written:]
        self._middle = bool(rest)
        return rest or None

    def wait(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._descriptor if self._mine is None else self._mine, select.POLLOUT)
        with suppress(OSError):
            poll.poll(seconds * 1000)

    def size(self, line: bytes) -> int:
        return len(line)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._mine is not None:
            os.close(self._mine)
            self._mine = None

    def _write(self, line: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._mine is not None:
            return os.write(self._mine, line)
        if self._may_block:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
            line = line[: select.PIPE_BUF]  # there is room for so many bytes (pipe(7))
        return os.write(self._descriptor, line)


def channel_of(stream: TextIO) -> Channel[bytes]:
    """Return the channel to a stream; what the stream has in its own buffer is written first."""
    with suppress(OSError, ValueError):
        stream.flush()
    try:
        return DescriptorChannel(stream.fileno())
    except (OSError, ValueError):
        return StreamChannel(stream)


def print_errors(text: str, stream: TextIO | None = None) -> None:
    """Write text to standard error, without the log. A standard error that nobody reads does not block."""
    stream = stream or sys.stderr
    if stream is None:  # it was closed when the process began
        return
    outlet = QueueWriter(channel_of(stream), lambda count: f"{count} lines were dropped\n".encode())
    outlet.write(text.encode("utf-8", "backslashreplace"))
    outlet.flush(LAST)
    outlet.close()
