"""The database file: its tables and migrations, how to open it, and error messages for a file that cannot be opened.

Events are stored in chunks: one row has the events of one commit, up to a few hundred. Each row costs its statement
plus a release and re-acquisition of the interpreter lock, so few large rows are faster. A chunk's `last` is the
position of its last event, so that `last > ? ORDER BY last` continues from any position.

`handler` restricts a chunk to one handler. `source` makes a chunk a reference to another chunk (for replay), to the
events of one `mailbox` or of all. `time` may decrease when the clock is set back: only positions give the order.
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
APPLICATION_ID: Final = 0x4557534C
""""EWSL", stored in the file's header: sqlite.org, "Database File Format", 1.3.17."""
FAILURES: Final = (sqlite3.Error, UnicodeDecodeError)
"""What Python's sqlite3 raises. UnicodeDecodeError: an error message may quote a damaged schema that is not UTF-8."""
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
"""The statements that migrate each version of the schema to the next. Append only."""


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Return a connection in autocommit mode; callers begin transactions explicitly. Raises sqlite3.Error."""
    mode = "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=10,
    )
    # A damaged row can have any bytes as text, and reading it must not raise.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        # Deleted data need not be overwritten. Some systems build SQLite to do so by default, at twice the cost.
        connection.execute("PRAGMA secure_delete = FAST")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_database(directory: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> sqlite3.Connection:
    """Open the journal of a state directory. Create it if necessary, and migrate it to the newest schema.

    Raises ConfigError with one problem, which has the file and what to do. A file that is not a journal, is damaged
    or is newer than this program is not changed.
    """
    path = directory / FILE_NAME
    _require_own_files(path)
    try:
        fresh = not path.exists() or path.stat().st_size == 0
        if fresh:
            _create(path)
        connection = connect(path)
    except OSError as error:
        raise unusable(
            path, f"cannot be created: {error.strerror}", "give the daemon's user write permission"
        ) from error
    except FAILURES as error:
        raise as_config_error(path, error) from error
    try:
        if not fresh:
            _check(connection, path, len(migrations))
        if version(connection) == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, migrations)
        if migrations is MIGRATIONS:
            _require_tables(connection)
        # A file without write permission opens without an error: only a write fails.
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
    except BaseException as error:
        connection.close()
        if isinstance(error, FAILURES):
            raise as_config_error(path, error) from error
        raise
    return connection


def _require_own_files(path: Path) -> None:
    """Reject symbolic links, because SQLite would follow them and write to their target. Raises ConfigError."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + suffix)
        try:
            require_own(file)
        except OSError as error:
            remedy = "remove it; to keep the journal on another disk, set state_directory"
            raise unusable(file, f"is not used: {error.strerror}", remedy) from error


def _create(path: Path) -> None:
    """Create an empty file, and sync the directory so that its name survives a power failure."""
    os.close(open_own(path, os.O_CREAT | os.O_WRONLY))
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def open_existing(directory: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> sqlite3.Connection:
    """Open an existing journal for offline access, while its daemon may be running. Raises ConfigError."""
    path = directory / FILE_NAME
    if not path.exists():
        raise unusable(path, "does not exist", "start the daemon once, or correct state_directory")
    _require_own_files(path)
    try:
        connection = connect(path)
    except FAILURES as error:
        raise as_config_error(path, error) from error
    try:
        _check(connection, path, len(migrations), thorough=False)
        if version(connection) < len(migrations):
            raise unusable(path, "was created by an older version of this program", "start the daemon once")
    except BaseException as error:
        connection.close()
        if isinstance(error, FAILURES):
            raise as_config_error(path, error) from error
        raise
    return connection


def _require_tables(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.Error if a table or column is missing, which means that the schema is damaged."""
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
    """Apply the missing migrations, each in its own transaction together with its number."""
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
            f"was created by a newer version of this program (schema {found}; this version supports {newest})",
            "run that version, or move the file away to start with an empty journal",
        )
    if not thorough:
        return
    until = time.monotonic() + _CHECK_SECONDS
    connection.set_progress_handler(lambda: int(time.monotonic() > until), 10_000)
    try:
        with closing(connection.execute("PRAGMA quick_check(1)")) as cursor:
            result = cursor.fetchone()[0]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        # The check of a large file may take minutes. It stops after _CHECK_SECONDS if it has found nothing.
        result = "ok"
    finally:
        connection.set_progress_handler(None, 0)
    if result != "ok":
        raise unusable(path, f"is damaged: {result.splitlines()[-1]}", UNCHANGED)


RESCUE: Final = (
    "copy it, try `sqlite3 journal.db .recover`, or move it and its -wal and -shm files away "
    "to start with an empty journal"
)
UNCHANGED: Final = f"nothing was changed; {RESCUE}"


def unusable(path: Path, what: str, remedy: str) -> ConfigError:
    """Return the error for a file that cannot be used: `PATH: what (remedy)`."""
    return ConfigError([Problem(str(path), f"{what} ({remedy})")])


def as_config_error(path: Path, error: Exception) -> ConfigError:
    """Return the ConfigError for a failure of SQLite, one of FAILURES."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if isinstance(error, UnicodeDecodeError):
        return unusable(path, "is damaged: its schema is not text", UNCHANGED)
    if code == sqlite3.SQLITE_NOTADB:
        return unusable(path, "is not an SQLite database, or its header is damaged", UNCHANGED)
    if code == sqlite3.SQLITE_CORRUPT:
        return unusable(path, f"is damaged: {error}", UNCHANGED)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return unusable(
            path,
            f"cannot be written: {error}",
            "give the daemon's user write permission for the file and its directory",
        )
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return unusable(path, f"cannot be used: {error}", "check whether the disk is full or failing")
    return unusable(path, f"is damaged, or was changed by another program: {error}", UNCHANGED)
