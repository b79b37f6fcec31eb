"""Audit file: appends whole lines to the file that currently has the path.

To rotate it, rename or remove the file. The next line then creates a new file.
"""

from __future__ import annotations

import os
from pathlib import Path

from listener.files import open_log


class AuditFile:
    """A new file is readable only by its owner. Raises OSError, with the path, if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor, self._identity, self._torn = self._open()
        except OSError as error:
            raise self._with_path(error) from error

    def info(self, line: bytes) -> None:
        """Write a line. Raises OSError, with the path; the caller may then write the line again."""
        try:
            if self._was_rotated():
                previous = self._descriptor
                self._descriptor, self._identity, self._torn = self._open()
                os.close(previous)
            data = memoryview((b"\n" if self._torn else b"") + line + b"\n")
            while data:
                written = os.write(self._descriptor, data)
                # After an error in the middle of a line, the next line must start with a newline.
                self._torn = written < len(data)
                data = data[written:]
        except OSError as error:
            raise self._with_path(error) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> tuple[int, tuple[int, int], bool]:
        """Return the descriptor, the identity of the file, and whether its last line is incomplete."""
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

    def _with_path(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self._path))
