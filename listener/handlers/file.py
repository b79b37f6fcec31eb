"""`use = "file"`: one line of JSON an event, appended to a file."""

import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from listener import BatchHandler, MailboxEvent


@asynccontextmanager
async def open_file(*, path: Path, sync: bool = True) -> AsyncIterator[BatchHandler]:
    """Append each event to the file at `path`, which is made (mode 0640) if it is not there.

    A line is on the disk when its event is acknowledged; without `sync`, only as far as a crash of the machine does
    not matter. A file that was renamed or removed, as by logrotate, is left, and a new one made at `path`. Raises
    OSError.
    """
    file = _LineFile(path)
    try:
        yield _Writer(file, sync=sync)
    finally:
        file.close()


class _Writer:
    max_batch = 500  # what comes while the disk is busy goes with the next

    def __init__(self, file: "_LineFile", *, sync: bool) -> None:
        self._file = file
        self._sync = sync

    async def handle_batch(self, events: Sequence[MailboxEvent]) -> None:
        # A write to a regular file takes microseconds; what waits for the disk goes to a thread.
        self._file.append("".join([event.to_json() + "\n" for event in events]).encode())
        if self._sync:
            await trio.to_thread.run_sync(self._file.sync, abandon_on_cancel=True)


class _LineFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor, self._identity, self._torn, self._new = self._open()

    def append(self, lines: bytes) -> None:
        """Adds whole lines. Raises OSError."""
        if self._was_rotated():
            old = self._descriptor
            self._descriptor, self._identity, self._torn, self._new = self._open()
            os.close(old)
        data = memoryview((b"\n" if self._torn else b"") + lines)
        self._torn = True  # until all of it is written: after an error, the next line starts on its own
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._torn = False

    def sync(self) -> None:
        """Returns when all is on the disk, and the file's name too. Raises OSError."""
        _flush(os.fdatasync, self._descriptor)
        if self._new:
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _flush(os.fsync, directory)
            finally:
                os.close(directory)
            self._new = False

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> tuple[int, tuple[int, int], bool, bool]:
        """A descriptor, which file it is, whether a crash cut off its last line, which none may continue, and whether
        it may be new."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        status = os.fstat(descriptor)
        torn = status.st_size > 0 and os.pread(descriptor, 1, status.st_size - 1) != b"\n"
        return descriptor, (status.st_dev, status.st_ino), torn, status.st_size == 0

    def _was_rotated(self) -> bool:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != self._identity


def _flush(flush: Callable[[int], None], descriptor: int) -> None:
    try:
        flush(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # there is no disk behind a terminal
            raise
