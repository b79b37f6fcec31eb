"""Disks that are full, read-only, broken or owned by another user; at startup and at runtime."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from listener.errors import ConfigError
from listener.journal import JournalError, records
from listener.journal.schema import FILE_NAME, MIGRATIONS, open_database
from listener.journal.sqlite import inline, open_journal

from .tools import crashed, event, events, everything, items, opened


async def opening_error(directory: Path) -> str:
    """Return the one-line error that the operator sees."""
    with pytest.raises(ConfigError) as caught:
        async with opened(directory):
            pass
    (problem,) = caught.value.problems
    assert problem.where.startswith(str(directory))
    return str(problem)


async def test_second_process_gets_the_id_of_the_lock_holder(tmp_path: Path) -> None:
    async with opened(tmp_path):
        text = await opening_error(tmp_path)
    assert text == (
        f"{tmp_path}/lock: is held by process {os.getpid()} (only one daemon can use a state directory)"
    )
    async with opened(tmp_path):
        pass


async def test_file_that_is_not_a_database_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"precious" * 1000)
    text = await opening_error(tmp_path)
    assert "is not an SQLite database" in text
    assert "nothing was changed" in text
    assert (tmp_path / FILE_NAME).read_bytes() == b"precious" * 1000


async def test_database_of_another_program_is_not_changed(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE chunks (a)")
    connection.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    assert "is a database of another program" in await opening_error(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


async def test_damaged_journal_is_reported_and_not_changed(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.reader("audit")
        await journal.append(events(range(2000)))
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    for page in range(2, len(data) // 4096):  # all but the first two
        data[page * 4096 : page * 4096 + 100] = b"\xaa" * 100
    (tmp_path / FILE_NAME).write_bytes(data)
    text = await opening_error(tmp_path)
    assert "is damaged" in text
    assert ".recover" in text
    assert (tmp_path / FILE_NAME).read_bytes() == data


async def test_directory_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = await opening_error(tmp_path / "file" / "state")
    assert text.startswith(
        f"{tmp_path}/file/state/lock: cannot be created: Not a directory (give the daemon's user"
    )


async def test_read_only_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write every file, so the test makes SQLite open it read-only, as for other users."""
    async with opened(tmp_path):
        pass
    real = sqlite3.connect
    monkeypatch.setattr(
        "listener.journal.schema.sqlite3.connect",
        lambda name, **more: real(name.replace("mode=rw", "mode=ro"), **more),
    )
    text = await opening_error(tmp_path)
    assert "cannot be written: attempt to write a readonly database (give the daemon's user" in text


def test_read_only_directory_for_an_unprivileged_user(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o555)
    script = f"""
import os, sys, trio, pathlib
from listener.errors import ConfigError
from listener.journal.sqlite import inline, open_journal
if os.geteuid() == 0:
    os.setuid(65534)
async def main():
    async with open_journal(pathlib.Path({str(state)!r})):
        pass
try:
    trio.run(main)
except ConfigError as error:
    print(error)
"""
    for parent in (tmp_path, *list(tmp_path.parents)[:3]):
        if parent.owner() == tmp_path.owner() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == (
        f"{state}/lock: cannot be created: Permission denied "
        "(give the daemon's user write permission, or choose another state directory)\n"
    ), done.stderr


def test_journal_of_a_newer_version_is_rejected_and_not_changed(tmp_path: Path) -> None:
    newer = (*MIGRATIONS, ("CREATE TABLE more (a)",))
    open_database(tmp_path, newer).close()
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(
        ConfigError, match=r"newer version of this program \(schema 2; this version supports 1\)"
    ):
        open_database(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_older_journal_is_migrated_with_its_contents(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as empty:
        empty.execute("VACUUM")  # version 0: a database without a table
    open_database(tmp_path).close()
    connection = open_database(tmp_path)
    connection.execute("INSERT INTO state VALUES ('n', 'k', x'00', 0)")
    connection.close()
    step = ("ALTER TABLE state ADD COLUMN more INTEGER DEFAULT 7",)
    connection = open_database(tmp_path, (*MIGRATIONS, step))
    assert connection.execute("SELECT key, more FROM state").fetchall() == [("k", 7)]
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_failed_migration_leaves_the_older_version_intact(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    step = ("ALTER TABLE state ADD COLUMN more INTEGER", "DROP TABLE not_there")
    with pytest.raises(ConfigError, match="no such table: not_there"):
        open_database(tmp_path, (*MIGRATIONS, step))
    connection = open_database(tmp_path)
    assert "more" not in [row[1] for row in connection.execute("PRAGMA table_info(state)")]
    connection.close()


async def test_full_disk_pauses_writes_and_loses_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with opened(tmp_path) as journal:
            reader = await journal.reader("audit")
            await journal.append(events(range(100)))
            entries = await reader.read(50)
            connection = journal._store._connection
            assert connection is not None
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.append, events(range(100, 1100)))
                await trio.sleep(100)
                full = journal.figures.write_error
                assert full == "database or disk is full (SQLITE_FULL)"
                assert journal.idle < 15  # the disk refuses writes but answers, so a restart would not help
                reader.acknowledge(entry.position for entry in entries)
                await trio.sleep(100)
                assert journal.figures.end == 100
                connection.execute(f"PRAGMA max_page_count = {pages * 100}")
            assert journal.figures.write_error is None
            assert items(await everything(reader)) == list(range(50, 1100))
            await trio.sleep(1)
            image = crashed(tmp_path, f"{tmp_path.name}-killed")
    async with opened(image) as journal:  # acknowledgements made meanwhile were not lost
        assert items(await everything(await journal.reader("audit"))) == list(range(50, 1100))
    assert [line["event"] for line in lines] == [
        "journal.opened",
        "journal.write_failed",
        "journal.recovered",
    ]
    assert lines[1]["path"] == str(tmp_path / FILE_NAME)
    assert lines[1]["reason"] == "database or disk is full (SQLITE_FULL)"
    assert lines[1]["free"] > 0
    assert lines[2]["duration"] >= 200


async def test_full_disk_does_not_delay_shutdown(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with opened(tmp_path) as journal:
            reader = await journal.reader("audit")
            await journal.append(events(range(100)))
            connection = journal._store._connection
            assert connection is not None
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
            with trio.move_on_after(50):
                await journal.append(events(range(100, 1100)))
            reader.acknowledge([entry.position for entry in await reader.read(1)])
            image = crashed(tmp_path, f"{tmp_path.name}-killed")
    assert "journal.write_failed" in [line["event"] for line in lines]
    async with opened(image) as journal:
        assert items(await everything(await journal.reader("audit"))) == list(range(100))


async def test_hanging_disk_shows_in_idle(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    answers = trio.Event()
    answers.set()

    async def hanging(function: Callable[..., object], *args: object) -> object:
        await answers.wait()
        return await inline(function, *args)

    async with open_journal(tmp_path, run_sync=hanging) as journal:
        await trio.sleep(100)
        assert journal.idle < 5
        answers = trio.Event()
        await trio.sleep(100)
        assert journal.idle > 95
        answers.set()
        await trio.sleep(5)
        assert journal.idle < 5


LIMITED = """
import resource, signal, sys, trio, pathlib, structlog
from listener.event import MailboxEvent
from listener.journal.sqlite import inline, open_journal
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def events(numbers):
    return [MailboxEvent(type="t", mailbox="ann", time="x", item_id=str(n) + "x" * 500) for n in numbers]

async def main():
    async with open_journal(pathlib.Path(sys.argv[1])) as journal:
        reader = await journal.reader("audit")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        async def write():
            for start in range(0, 10_000, 100):
                await journal.append(events(range(start, start + 100)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while journal.figures.write_error is None:
                await trio.sleep(0.01)
            print("refused", journal.figures.write_error, journal.figures.end < 10_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        seen = []
        while len(seen) < 10_000:
            entries = await reader.read(500)
            seen += [int(entry.event.item_id.rstrip("x")) for entry in entries]
        print("whole", seen == list(range(10_000)), journal.figures.write_error)

trio.run(main)
"""


def test_file_size_limit_pauses_writes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "refused disk I/O error (SQLITE_IOERR_WRITE) True",
        "whole True None",
    ], done.stderr
    assert "journal.write_failed" in done.stderr
    assert "journal.recovered" in done.stderr


async def test_temporary_read_errors_are_retried(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    failures = 3

    async def failing(function: Callable[..., object], *args: object) -> object:
        nonlocal failures
        if function is records.read_events and failures:
            failures -= 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR_READ, "SQLITE_IOERR_READ"
            raise error
        return await inline(function, *args)

    with structlog.testing.capture_logs() as lines:
        async with open_journal(tmp_path, memory=0, run_sync=failing) as journal:
            reader = await journal.reader("audit")
            await journal.append([event(1)])
            await journal.append([event(2)])
            assert items(await reader.read(5)) == [1, 2]
    assert [line["event"] for line in lines] == ["journal.opened", "journal.unreadable"]


async def test_damage_at_runtime_ends_the_journal_with_the_path(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with opened(tmp_path) as journal:
            await journal.append([event(1)])
            assert journal._store._connection is not None
            journal._store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            journal._store._connection.close()  # as after a disk error
            journal._store._connection = None
            (tmp_path / FILE_NAME).write_bytes(b"\xaa" * 100_000)
            await journal.append([event(2)])
    assert all(isinstance(error, JournalError) for error in caught.value.exceptions)
    reason, closed = sorted(map(str, caught.value.exceptions))
    assert reason.startswith(f"{tmp_path / FILE_NAME} is damaged: ")
    assert closed == "the journal is closed"


async def test_pending_write_fails_when_damage_is_found(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise JournalError("damaged")

    errors: list[str] = []
    with pytest.raises(ExceptionGroup):
        async with opened(tmp_path) as journal:
            monkeypatch.setattr(journal._store, "transact", damaged)
            with trio.CancelScope(shield=True), trio.move_on_after(60):  # as when a handler is replaced
                try:
                    await journal.append([event(1)])
                except JournalError as error:
                    errors.append(str(error))
    assert errors == ["the journal is closed"]
