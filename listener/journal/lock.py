"""One process a state directory."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from listener.files import open_own
from listener.journal.schema import unusable

FILE_NAME: Final = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the directory if need be and holds its lock; the system frees it if we are killed.

    Raises ConfigError if it cannot be made, or if another process has it, whose id is then named.
    """
    path = directory / FILE_NAME
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.filename == str(path) and error.errno in (errno.ELOOP, errno.EINVAL, errno.EPERM):
            raise unusable(path, f"is not used: {error.strerror}", "remove it") from error
        what = f"cannot be made: {error.strerror}"
        raise unusable(path, what, "let the daemon's user write there, or choose another") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            what = f"is held by process {holder}"
            raise unusable(path, what, "a state directory serves one daemon at a time") from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds all the same, only the id is not told
        yield
    finally:
        os.close(descriptor)
