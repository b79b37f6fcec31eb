"""Offline access by the command line, with or without a running daemon."""

from pathlib import Path

import pytest
import trio
import trio.testing

from listener.errors import ConfigError
from listener.journal import JournalError
from listener.journal.offline import open_offline
from listener.journal.schema import MIGRATIONS, open_existing

from .tools import crashed, events, everything, items, opened


async def test_requeue_and_replay_reach_a_running_daemon(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path) as journal:
        reader = await journal.reader("audit")
        await journal.append(events([1, 2, 3]))
        for entry in await reader.read(3):
            await reader.dead_letter([entry], reason=f"no {entry.position}")
        with open_offline(tmp_path) as offline:
            assert offline.handlers() == ["audit"]
            assert [x.reason for x in offline.dead_letters("audit")] == ["no 1", "no 2", "no 3"]
            letter = offline.dead_letter(2)
            assert letter is not None
            assert letter.event.item_id == "2"
            assert offline.requeue([2]) == 1
            assert offline.discard([1, 2]) == 1
            assert offline.replay("audit", since=0, mailbox="ANN@x.example") == 3
            with pytest.raises(JournalError, match='unknown handler "adit"; known handlers: audit'):
                offline.replay("adit", since=0)
        got: list[int] = []
        with trio.fail_after(2):  # nothing but the poll wakes the reader
            while len(got) < 4:
                entries = await reader.read(1)
                got += items(entries)
                reader.acknowledge(entry.position for entry in entries)
        assert got == [2, 1, 2, 3]
        await journal.append(events([4]))
        await journal.append(events([5]))
        assert items(await everything(reader)) == [4, 5]
        assert [x.number for x in await journal.dead_letters()] == [3]


async def test_append_after_a_replay_keeps_the_order(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path) as journal:
        reader = await journal.reader("audit")
        await journal.append(events([1, 2]))
        assert len(await everything(reader)) == 2
        with open_offline(tmp_path) as offline:
            offline.replay("audit", since=0)
        await journal.append(events([3]))
        assert items(await everything(reader)) == [1, 2, 3]


async def test_requeue_works_although_the_handler_was_forgotten(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path) as journal:
        reader = await journal.reader("audit")
        await journal.append(events([1]))
        await reader.dead_letter(await reader.read(1), reason="no")
    with open_offline(tmp_path) as offline:
        offline._connection.execute("DELETE FROM handlers")
        assert offline.requeue([1]) == 1
    async with opened(tmp_path) as journal:
        assert items(await everything(await journal.reader("audit"))) == [1]


async def test_errors_have_the_path(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ConfigError, match=r"journal\.db: does not exist"), open_offline(tmp_path):
        pass
    async with opened(tmp_path / "j"):
        image = crashed(tmp_path / "j", "other")
    with pytest.raises(ConfigError, match="was created by an older version"):
        open_existing(image, (*MIGRATIONS, ("SELECT 1",)))
    with open_offline(image) as offline:
        offline._connection.execute("PRAGMA query_only = TRUE")
        with pytest.raises(JournalError, match=r"journal\.db: attempt to write a readonly database"):
            offline.requeue([1])
