"""A lock file: one process per state directory."""

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
def lock_directory(directory: Path) -> Iterator[None]:
    """Create the directory if necessary and hold its lock. The kernel releases the lock when the process dies.

    Raises ConfigError if the lock file cannot be created, or if another process holds it; the text has its id.
    """
    path = directory / FILE_NAME
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.filename == str(path) and error.errno in (errno.ELOOP, errno.EINVAL, errno.EPERM):
            raise unusable(path, f"is not used: {error.strerror}", "remove it") from error
        what = f"cannot be created: {error.strerror}"
        remedy = "give the daemon's user write permission, or choose another state directory"
        raise unusable(path, what, remedy) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            what = f"is held by process {holder}"
            raise unusable(path, what, "only one daemon can use a state directory") from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # A full disk: the lock holds nevertheless, only the process id is not recorded.
        yield
    finally:
        os.close(descriptor)
