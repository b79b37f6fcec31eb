"""Refusals outlive the process: a daemon that is restarted over and over, or a check that is repeated, must not lock
the account either.

What is kept is how often and until when, by account, in a file of the state directory. A password that was changed
since may be tried at once, so its scrypt hash (RFC 7914) is kept beside it, salted, for comparison.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import structlog

from listener.files import open_own

log = structlog.get_logger()

MOST = 1 << 20
"""Bytes of the file that are read."""
REFUSALS = "refusals.json"
"""The name of the file."""


class Refusals(msgspec.Struct, frozen=True):
    """Of one account: how many in a row, how far the pauses have grown, and until when (Unix seconds) nothing is
    asked, after a failure with this code and text."""

    attempts: int
    level: int
    until: float
    code: str
    text: str


class _Record(msgspec.Struct, frozen=True):
    salt: bytes
    proof: bytes
    refusals: Refusals


class RefusalStore:
    """The file at `path`. What cannot be read counts as nothing, and is told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records = self._read()

    def recall(self, account: str, secret: str) -> Refusals | None:
        """What is known of the account, if it still comes with the same secret."""
        record = self._records.get(account)
        return record.refusals if record is not None and _proof(secret, record.salt) == record.proof else None

    def note(self, account: str, secret: str, refusals: Refusals | None) -> None:
        """Keeps them; None: the secret was taken."""
        if refusals is None:
            if self._records.pop(account, None) is None:
                return
        else:
            salt = os.urandom(16)
            self._records[account] = _Record(salt, _proof(secret, salt), refusals)
        beside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside.unlink(missing_ok=True)
            # O_EXCL follows no link that somebody has placed there.
            with open(
                os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
            ) as file:
                file.write(msgspec.json.encode(self._records))
                if os.geteuid() == 0:  # a check as root must not keep the service from its own file
                    owner = self._path.parent.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            beside.replace(self._path)
        except OSError as error:
            log.warning("auth.refusals_not_saved", path=str(self._path), reason=error.strerror)

    def _read(self) -> dict[str, _Record]:
        try:
            with open(open_own(self._path, os.O_RDONLY), "rb") as file:
                return msgspec.json.decode(file.read(MOST), type=dict[str, _Record])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("auth.refusals_not_saved", path=str(self._path), reason=str(error))
            return {}


def _proof(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=1 << 14, r=8, p=1)
