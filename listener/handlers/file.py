"""`use = "file"`: one line of JSON an event, appended to a file."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from listener import Handler, MailboxEvent


@asynccontextmanager
async def open_file(*, path: Path) -> AsyncIterator[Handler]:
    """Append each event to the file at `path`, which is made (mode 0640) if it is not there.

    A line is in the file, though not yet on the disk, when its event is acknowledged. A file that was renamed or
    removed, as by logrotate, is left, and a new one made at `path`. Raises OSError.
    """
    file = _LineFile(path)
    try:

        async def handle(event: MailboxEvent) -> None:
            # A write to a regular file takes microseconds; a hop to a thread would cost ten times that.
            file.append(event.to_json().encode())

        yield handle
    finally:
        file.close()


class _LineFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor, self._identity, self._torn = self._open()

    def append(self, line: bytes) -> None:
        if self._was_rotated():
            old = self._descriptor
            self._descriptor, self._identity, self._torn = self._open()
            os.close(old)
        data = memoryview((b"\n" if self._torn else b"") + line + b"\n")
        self._torn = True  # until all of it is written: after an error, the next line starts on its own
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._torn = False

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> tuple[int, tuple[int, int], bool]:
        """A descriptor, which file it is, and whether a crash cut off its last line, which none may continue."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        status = os.fstat(descriptor)
        torn = status.st_size > 0 and os.pread(descriptor, 1, status.st_size - 1) != b"\n"
        return descriptor, (status.st_dev, status.st_ino), torn

    def _was_rotated(self) -> bool:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != self._identity
