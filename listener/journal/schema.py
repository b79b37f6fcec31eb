"""The database file: its tables, their versions, how it is opened, and what is wrong with one that cannot be.

Events lie in chunks: one row holds what one commit brought, up to a few hundred events, because every row costs a
release and a fight for the interpreter's lock beside its own price. A chunk's `last` is the position of its last
event, so that `last > ? ORDER BY last` is the way on from any position.

`handler` addresses a chunk to one handler only; `source` makes it a second reading of another chunk (for replay),
of one `mailbox` or of all. `time` is never relied on to grow: positions are the order.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from listener.errors import ConfigError, Problem
from listener.files import open_own, require_own

FILE_NAME: Final = "journal.db"
APPLICATION_ID: Final = (
    0x4557534C  # "EWSL"; it stands in the file's header, sqlite.org "Database File Format" 1.3.17
)
FAILURES: Final = (sqlite3.Error, UnicodeDecodeError)
"""What Python's sqlite3 raises: a message about a damaged schema quotes it, and may not be UTF-8."""
_CHECK_SECONDS: Final = 2.0

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE chunks (
            last INTEGER PRIMARY KEY, count INTEGER NOT NULL, time REAL NOT NULL,
            handler TEXT, mailbox TEXT, source INTEGER, body BLOB)""",
        "CREATE INDEX chunks_time ON chunks (time)",
        "CREATE INDEX chunks_source ON chunks (source) WHERE source IS NOT NULL",
        "CREATE INDEX chunks_handler ON chunks (handler) WHERE handler IS NOT NULL",
        """CREATE TABLE handlers (
            name TEXT PRIMARY KEY, cursor INTEGER NOT NULL, upto INTEGER NOT NULL,
            unfinished BLOB NOT NULL, seen REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE dead_letters (
            number INTEGER PRIMARY KEY AUTOINCREMENT, handler TEXT NOT NULL, position INTEGER NOT NULL,
            event BLOB NOT NULL, reason TEXT NOT NULL, traceback TEXT NOT NULL, attempts INTEGER NOT NULL,
            time REAL NOT NULL, UNIQUE (handler, position))""",
        """CREATE TABLE state (
            namespace TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, time REAL NOT NULL,
            PRIMARY KEY (namespace, key)) WITHOUT ROWID""",
    ),
)
"""What leads from each version of the schema to the next. Only ever appended to."""


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection that commits only when told to. Raises sqlite3.Error."""
    mode = "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10,
    )
    # A damaged row can hold anything, and must not make reading it raise.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        # What is deleted need not be wiped; some systems build SQLite so that it is, at twice the price.
        connection.execute("PRAGMA secure_delete = FAST")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_database(directory: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> sqlite3.Connection:
    """Opens the journal of a state directory, makes it if there is none, and brings it to the newest schema.

    Raises ConfigError with one problem, which names the file and says what to do. A file that is not a journal, is
    damaged or is newer than this program is left as it is.
    """
    path = directory / FILE_NAME
    _require_own_files(path)
    try:
        fresh = not path.exists() or path.stat().st_size == 0
        if fresh:
            _make(path)
        connection = connect(path)
    except OSError as error:
        raise unusable(
            path, f"cannot be made: {error.strerror}", "let the daemon's user write there"
        ) from error
    except FAILURES as error:
        raise explained(path, error) from error
    try:
        if not fresh:
            _check(connection, path, len(migrations))
        if version(connection) == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, migrations)
        if migrations is MIGRATIONS:
            _require_tables(connection)
        # A file without write permission opens all the same: only a write tells.
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
    except BaseException as error:
        connection.close()
        if isinstance(error, FAILURES):
            raise explained(path, error) from error
        raise
    return connection


def _require_own_files(path: Path) -> None:
    """SQLite would follow a symbolic link, and write where it leads. Raises ConfigError."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + suffix)
        try:
            require_own(file)
        except OSError as error:
            remedy = "remove it; to keep the journal on another disk, set state_directory"
            raise unusable(file, f"is not used: {error.strerror}", remedy) from error


def _make(path: Path) -> None:
    """An empty file whose name survives a loss of power."""
    os.close(open_own(path, os.O_CREAT | os.O_WRONLY))
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def open_beside(directory: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> sqlite3.Connection:
    """Opens a journal that exists, while its daemon may be at work. Raises ConfigError."""
    path = directory / FILE_NAME
    if not path.exists():
        raise unusable(path, "is not there", "start the daemon once, or name its state directory")
    _require_own_files(path)
    try:
        connection = connect(path)
    except FAILURES as error:
        raise explained(path, error) from error
    try:
        _check(connection, path, len(migrations), thorough=False)
        if version(connection) < len(migrations):
            raise unusable(path, "was made by an older version of this program", "start the daemon once")
    except BaseException as error:
        connection.close()
        if isinstance(error, FAILURES):
            raise explained(path, error) from error
        raise
    return connection


def _require_tables(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.Error if a table or column is missing: its definition is damaged."""
    for table, columns in (
        ("chunks", "last, count, time, handler, mailbox, source, body"),
        ("handlers", "name, cursor, upto, unfinished, seen"),
        ("dead_letters", "number, handler, position, event, reason, traceback, attempts, time"),
        ("state", "namespace, key, value, time"),
    ):
        connection.execute(f"SELECT {columns} FROM {table} LIMIT 0").close()  # noqa: S608


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Applies what is missing, each step in a transaction of its own with its number."""
    for number in range(version(connection), len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in migrations[number]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _check(connection: sqlite3.Connection, path: Path, newest: int, *, thorough: bool = True) -> None:
    found = version(connection)
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if tables and not ours:
        raise unusable(path, "is a database of another program", "choose another state directory")
    if found > newest:
        raise unusable(
            path,
            f"was made by a newer version of this program (schema {found}; this one knows {newest})",
            "run that version, or move the file away and begin anew",
        )
    if not thorough:
        return
    until = time.monotonic() + _CHECK_SECONDS
    connection.set_progress_handler(lambda: int(time.monotonic() > until), 10_000)
    try:
        with closing(connection.execute("PRAGMA quick_check(1)")) as cursor:
            said = cursor.fetchone()[0]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        said = (
            "ok"  # a large file is not read to its end: it may take minutes, and nothing has been found yet
        )
    finally:
        connection.set_progress_handler(None, 0)
    if said != "ok":
        raise unusable(path, f"is damaged: {said.splitlines()[-1]}", UNCHANGED)


RESCUE: Final = (
    "copy it, try `sqlite3 journal.db .recover`, or move it and its -wal and -shm files away to begin anew"
)
UNCHANGED: Final = f"nothing was changed; {RESCUE}"


def unusable(path: Path, what: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(str(path), f"{what} ({remedy})")])


def explained(path: Path, error: Exception) -> ConfigError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if isinstance(error, UnicodeDecodeError):
        return unusable(path, "is damaged: its schema is no text", UNCHANGED)
    if code == sqlite3.SQLITE_NOTADB:
        return unusable(path, "is not an SQLite database, or its beginning is damaged", UNCHANGED)
    if code == sqlite3.SQLITE_CORRUPT:
        return unusable(path, f"is damaged: {error}", UNCHANGED)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return unusable(
            path, f"cannot be written: {error}", "let the daemon's user write the file and its directory"
        )
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return unusable(path, f"cannot be used: {error}", "is the disk full, or broken?")
    return unusable(path, f"is damaged, or was changed by another program: {error}", UNCHANGED)
