"""`use = "file"`: append one line of JSON per event to a file."""

import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from listener import BatchHandler, MailboxEvent


@asynccontextmanager
async def open_file(*, path: Path, sync: bool = True) -> AsyncIterator[BatchHandler]:
    """Append each event to the file at `path`. Create it (mode 0640) if it does not exist.

    With `sync`, a line is on the disk before its event is acknowledged; without, a crash of the machine may lose it.
    If the file was renamed or removed, as by logrotate, a new one is created at `path`. Raises OSError.
    """
    file = _LineFile(path)
    try:
        yield _Writer(file, sync=sync)
    finally:
        file.close()


class _Writer:
    max_batch = 500  # events that arrive during a sync share the next one

    def __init__(self, file: "_LineFile", *, sync: bool) -> None:
        self._file = file
        self._sync = sync

    async def handle_batch(self, events: Sequence[MailboxEvent]) -> None:
        # A write to a regular file takes microseconds. Only the sync waits for the disk, so it runs in a thread.
        self._file.append("".join([event.to_json() + "\n" for event in events]).encode())
        if self._sync:
            await trio.to_thread.run_sync(self._file.sync, abandon_on_cancel=True)


class _LineFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor, self._identity, self._torn, self._new = self._open()

    def append(self, lines: bytes) -> None:
        """Append complete lines. Raises OSError."""
        if self._was_rotated():
            old = self._descriptor
            self._descriptor, self._identity, self._torn, self._new = self._open()
            os.close(old)
        data = memoryview((b"\n" if self._torn else b"") + lines)
        self._torn = (
            True  # until everything is written: after an error, the next append starts with a line end
        )
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._torn = False

    def sync(self) -> None:
        """Return when the lines and the file's directory entry are on the disk. Raises OSError."""
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
        """Return a descriptor, the file's identity, whether its last line is incomplete, and whether it may be new.

        A crash may have cut off the last line; the next line must not continue it.
        """
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
        if error.errno != errno.EINVAL:  # terminals and pipes cannot be synced
            raise
