"""Open the daemon's own files safely in a directory where another user may have placed links or FIFOs."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a regular file that belongs to this user or to the owner of its directory. Return the descriptor.

    Does not follow a symbolic link at `path`, and does not block, as opening a FIFO would. The directory may be
    reached through links. Raises OSError, whose strerror says what is at `path` instead.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, LINK, str(path)) from error
        raise
    try:
        _require_own(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_own(path: Path) -> None:
    """Raise OSError as open_own() does. A missing file is not an error."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    _require_own(path, status)


def _require_own(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, LINK, str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if status.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        raise OSError(errno.EPERM, f"it belongs to another user (uid {status.st_uid})", str(path))


def open_log(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file that the operator configured. Follow a symbolic link only if root or this user owns it."""
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    if path.lstat().st_uid not in (0, os.geteuid()):
        raise OSError(errno.ELOOP, "it is a symbolic link of another user", str(path))
    return os.open(path, flags, mode)


LINK = "it is a symbolic link"
