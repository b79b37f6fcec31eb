"""The file of the audit: whole lines at its end, in whatever file the path names just now.

Whoever rotates it renames it, or takes it away, and the next line begins a new file.
"""

from __future__ import annotations

import os
from pathlib import Path

from listener.files import open_log


class AuditFile:
    """A file that is made here is its owner's alone. Raises OSError, with the path, if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor, self._identity, self._torn = self._open()
        except OSError as error:
            raise self._named(error) from error

    def info(self, line: bytes) -> None:
        """Writes a line. Raises OSError, with the path; the line is then to be written again."""
        try:
            if self._was_rotated():
                old = self._descriptor
                self._descriptor, self._identity, self._torn = self._open()
                os.close(old)
            data = memoryview((b"\n" if self._torn else b"") + line + b"\n")
            while data:
                written = os.write(self._descriptor, data)
                # Until all of it is written: after an error, the next line starts on its own.
                self._torn = written < len(data)
                data = data[written:]
        except OSError as error:
            raise self._named(error) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> tuple[int, tuple[int, int], bool]:
        """A descriptor, which file it is, and whether its last line was cut off."""
        descriptor = open_log(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        status = os.fstat(descriptor)
        torn = status.st_size > 0 and os.pread(descriptor, 1, status.st_size - 1) != b"\n"
        return descriptor, (status.st_dev, status.st_ino), torn

    def _was_rotated(self) -> bool:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != self._identity

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self._path))
