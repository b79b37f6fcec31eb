"""Retention: what the journal deletes, when, and what it never deletes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog.testing
import trio
import trio.testing

from listener.journal import OWNED, Put, Reader, Retention
from listener.journal.sqlite import SqliteJournal

from .tools import Clock, event, events, everything, items, opened

DAY = 86400.0


def kept(journal: SqliteJournal) -> int:
    (count,) = journal._reading.execute("SELECT coalesce(sum(count), 0) FROM chunks").fetchone()
    return int(count)


async def finish(reader: Reader) -> None:
    reader.acknowledge([entry.position for entry in await everything(reader)])


async def fill(journal: SqliteJournal, numbers: Sequence[int]) -> None:
    for number in numbers:
        await journal.append(events(range(number * 100, number * 100 + 100)))


async def test_finished_events_are_deleted_by_age(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock()
    async with opened(tmp_path / "j", clock, Retention(age=DAY)) as journal:
        quick, slow = await journal.reader("quick"), await journal.reader("slow")
        await fill(journal, range(3))
        await finish(quick)
        clock.time += 2 * DAY
        await fill(journal, range(3, 5))
        await trio.sleep(60)
        assert kept(journal) == 500
        for _ in range(2):
            slow.acknowledge([entry.position for entry in await slow.read(100)])
        await trio.sleep(60)
        assert kept(journal) == 300  # the third chunk is old too, but slow has not read it
        await finish(slow)
        await trio.sleep(60)
        assert kept(journal) == 200
        assert journal.figures.end == 500
        await fill(journal, [5])
        assert items(await everything(slow)) == list(range(500, 600))


async def test_newest_chunk_is_kept_so_that_positions_never_decrease(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock()
    async with opened(tmp_path / "j", clock, Retention(age=DAY)) as journal:
        reader = await journal.reader("audit")
        await fill(journal, range(3))
        await finish(reader)
        clock.time += 10 * DAY
        await trio.sleep(60)
        assert kept(journal) == 100
    async with opened(tmp_path / "j", clock, Retention(age=DAY)) as journal:
        reader = await journal.reader("audit")
        await journal.append(events([7]))
        ((position, _),) = await everything(reader)
        assert position == 301


async def test_clock_changes_delete_nothing_unfinished(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock()
    async with opened(tmp_path / "j", clock, Retention(age=DAY)) as journal:
        reader = await journal.reader("audit")
        for jump in (-3600.0, 400 * DAY, -400 * DAY):
            clock.time += jump
            await fill(journal, [0])
            await trio.sleep(60)
        assert len(await everything(reader)) == 300
        await finish(reader)


async def test_old_events_are_deleted_after_the_clock_jumped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock()
    async with opened(tmp_path / "j", clock, Retention(age=DAY)) as journal:
        clock.time += 400 * DAY
        await fill(journal, [0])
        clock.time -= 400 * DAY
        await fill(journal, [1])
        clock.time += DAY * 1.5
        await fill(journal, [2])
        await trio.sleep(60)
        assert kept(journal) == 100


async def test_oldest_finished_events_are_deleted_near_the_size_limit(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    limit = 600_000
    async with opened(tmp_path / "j", keep=Retention(age=1000 * DAY, size=limit)) as journal:
        reader = await journal.reader("audit")
        with structlog.testing.capture_logs() as lines:
            for number in range(200):
                await fill(journal, [number])
                await finish(reader)
                await trio.sleep(0.2)
                assert journal.figures.size < limit
        assert lines == []
        assert 1000 < kept(journal) < 10_000


async def test_full_journal_pauses_appends_and_logs_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    numbers = list(range(200))
    with structlog.testing.capture_logs() as lines:
        async with opened(tmp_path / "j", keep=Retention(size=300_000), memory=50) as journal:
            reader = await journal.reader("audit")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill, journal, numbers)
                await trio.sleep(1000)
                assert journal.figures.full
                assert journal.figures.waiting == 1
                stuck = journal.figures.end
                assert stuck < 20_000
                await journal.append((), [Put("sync", "ann", b"state goes on")])
                got: list[int] = []
                while len(got) < 20_000:
                    entries = await reader.read(1000)
                    got += items(entries)
                    reader.acknowledge(entry.position for entry in entries)
            assert got == list(range(20_000))
            await trio.sleep(10)
    names = [line["event"] for line in lines]
    full = lines[names.index("journal.full")]
    assert full["path"] == str(tmp_path / "j" / "journal.db")
    assert (full["limit"], full["slowest"], full["lag"]) == (300_000, "audit", stuck)
    assert names[1:3] == ["journal.full", "journal.room"]
    assert names.count("journal.full") == names.count("journal.room")


async def test_absent_handler_keeps_its_offset_until_it_is_too_old(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock, keep = Clock(), Retention(age=3 * DAY)
    async with opened(tmp_path / "j", clock, keep) as journal:
        await journal.reader("gone")
        await journal.append(events([1]))
    clock.time += 2 * DAY
    async with opened(tmp_path / "j", clock, keep) as journal:
        await journal.reader("stays")
        await trio.sleep(3600)
        assert kept(journal) == 1
    async with opened(tmp_path / "j", clock, keep) as journal:
        assert items(await everything(await journal.reader("gone"))) == [1]
    clock.time += 4 * DAY
    with structlog.testing.capture_logs() as lines:
        async with opened(tmp_path / "j", clock, keep) as journal:
            await journal.reader("stays")
            await trio.sleep(300)  # a handler that is opened late keeps its offset
            assert [line["event"] for line in lines] == ["journal.opened"]
            await trio.sleep(3600)
    assert [line.get("handler") for line in lines] == [None, "gone"]


async def test_full_journal_forgets_an_absent_handler(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    keep = Retention(size=300_000)
    async with opened(tmp_path / "j", keep=keep) as journal:
        await journal.reader("gone")
    with structlog.testing.capture_logs() as lines:
        async with opened(tmp_path / "j", keep=keep) as journal:
            reader = await journal.reader("audit")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill, journal, range(200))
                got: list[int] = []
                while len(got) < 20_000:
                    entries = await reader.read(1000)
                    got += items(entries)
                    reader.acknowledge(entry.position for entry in entries)
            assert got == list(range(20_000))
    forgotten = [line for line in lines if line["event"] == "journal.handler_forgotten"]
    assert [line["handler"] for line in forgotten] == ["gone"]


async def test_replayed_chunk_keeps_its_source_and_is_deleted_when_finished(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock()
    async with opened(tmp_path / "j", clock, Retention(age=DAY)) as journal:
        reader = await journal.reader("audit")
        await fill(journal, [0])
        clock.time += 0.9 * DAY
        await fill(journal, [1])
        await finish(reader)
        assert await journal.replay("audit", since=clock.time - DAY) == 200
        clock.time += 0.2 * DAY
        await journal.append([event(-2)])
        await trio.sleep(60)
        again = await everything(reader)
        assert items(again) == [*range(200), -2]
        reader.acknowledge(entry.position for entry in again)
        await trio.sleep(120)
        assert kept(journal) == 101


async def test_state_of_removed_owners_is_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path / "j", clock) as journal:
        for owner in ("ann", "bob", "cat", "catherine"):
            for number in range(30):
                await journal.append((), [Put("sync", f"{owner}{OWNED}{number}", b"")])
        await journal.append((), [Put("sync", "ownerless", b""), Put("other", f"bob{OWNED}1", b"")])
        clock.time += DAY
        await journal.append((), [Put("sync", f"cat{OWNED}29", b"")])
        clock.time += DAY
        # Of the removed owners, only bob has no recent value; ann and catherine are not removed.
        assert await journal.forget("sync", {"ann", "catherine"}, clock.time - 1.5 * DAY) == ["bob"]
        left = Counter(key.partition(OWNED)[0] for key in await journal.load("sync"))
        assert left == {"ann": 30, "cat": 30, "catherine": 30, "ownerless": 1}
        assert list(await journal.load("other")) == [f"bob{OWNED}1"]
        assert await journal.forget("sync", {"ann", "catherine"}, clock.time - 1.5 * DAY) == []
        assert await journal.forget("sync", {"ann", "catherine"}, clock.time) == ["cat"]


async def test_deleting_shrinks_the_file(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    clock = Clock()
    async with opened(tmp_path / "j", clock, Retention(age=DAY)) as journal:
        for number in range(50):
            batch = [event(number * 5000 + n, "x" * 500) for n in range(2000)]
            await journal.append(batch)
        large = journal.figures.size
        clock.time += 2 * DAY
        await journal.append(events([1]))
        await trio.sleep(3600)
    assert large > 50_000_000
    assert (tmp_path / "j" / "journal.db").stat().st_size < large / 2
