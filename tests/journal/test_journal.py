"""The rules that the journal guarantees to its callers."""

from contextlib import aclosing
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from listener.event import MailboxEvent
from listener.journal import Drop, Journal, JournalError, Put
from listener.journal.records import CHUNK
from listener.journal.sqlite import open_journal

from .tools import Clock, crashed, event, events, everything, items, opened


async def test_handler_receives_events_appended_since_it_was_first_opened(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.append(events([1, 2]))
        reader = await journal.reader("audit")
        await journal.append(events([3, 4]))
        assert items(await everything(reader)) == [3, 4]
    async with opened(tmp_path / "j") as journal:
        assert items(await everything(await journal.reader("audit"))) == [3, 4]
        assert await everything(await journal.reader("new")) == []


async def test_reader_waits_for_the_next_event(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal, trio.open_nursery() as nursery:
        reader = await journal.reader("audit")
        got: list[int] = []

        async def read() -> None:
            got.extend(items(await reader.read(10)))

        nursery.start_soon(read)
        await trio.sleep(100)
        assert got == []
        await journal.append(events([7]))
        await trio.sleep(0.001)
        assert got == [7]


async def test_lagging_handler_reads_from_disk_without_gaps(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    many = 3 * CHUNK + 17
    async with opened(tmp_path / "j", memory=10) as journal:
        reader = await journal.reader("audit")
        await journal.append(events(range(many)))
        for number in range(many, many + 20):
            await journal.append([event(number)])
        got: list[int] = []
        while len(got) < many + 20:
            entries = await reader.read(100)
            assert len(entries) <= 100
            got += items(entries)
            reader.acknowledge(entry.position for entry in entries)
        assert got == list(range(many + 20))
        assert (reader.unfinished, reader.lag) == (0, 0)


async def test_only_unfinished_events_are_redelivered(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        await journal.append(events(range(1000)))
        entries = await everything(reader)
        reader.acknowledge(e.position for e in entries if items([e])[0] not in (3, 900, 999))
        await journal.flush()
        image = crashed(tmp_path / "j", "killed")
    async with opened(image) as journal:
        reader = await journal.reader("audit")
        assert (reader.unfinished, reader.lag) == (3, 3)
        await journal.append(events([1000]))
        assert items(await everything(reader)) == [3, 900, 999, 1000]


async def test_fetched_but_unread_events_are_redelivered(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j", memory=0) as journal:
        reader = await journal.reader("audit")
        await journal.append(events(range(10)))
        for _ in range(3):
            reader.acknowledge([entry.position for entry in await reader.read(1)])
        assert (reader.unfinished, reader.lag) == (0, 7)
        await journal.flush()
        image = crashed(tmp_path / "j", "killed")
    async with opened(image) as journal:
        assert items(await everything(await journal.reader("audit"))) == list(range(3, 10))


async def test_acknowledgements_become_durable_without_a_flush(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        await journal.append(events([1, 2]))
        reader.acknowledge([entry.position for entry in await reader.read(1)])
        await trio.sleep(0.5)
        image = crashed(tmp_path / "j", "killed")
    async with opened(image) as journal:
        assert items(await everything(await journal.reader("audit"))) == [2]


async def test_filtered_events_count_as_finished(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    def wants(event: MailboxEvent) -> bool:
        return event.mailbox == "bob@x.example"

    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit", wants)
        await journal.append(events(range(50)))
        await journal.append(events([50], "bob@x.example"))
        await journal.append(events(range(51, 60)))
        (entry,) = await everything(reader)
        assert reader.lag == 1
        reader.acknowledge([entry.position])
        assert reader.lag == 0
    async with opened(tmp_path / "j") as journal:
        assert await everything(await journal.reader("audit")) == []


async def test_changed_filter_releases_unfinished_events(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        await journal.append(events(range(5)))
        assert len(await everything(reader)) == 5
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit", lambda event: event.item_id == "3")
        assert items(await everything(reader)) == [3]
        assert (reader.unfinished, reader.lag) == (1, 1)


async def test_state_and_events_are_written_atomically(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        await journal.append(events([1]), [Put("sync", "ann/inbox", b"1"), Put("sync", "bob/inbox", b"1")])
        await journal.append((), [Put("sync", "ann/inbox", b"2"), Put("other", "ann", b"x")])
        await journal.append(
            (), [Drop("sync", "bob/inbox"), Drop("sync", "never/there"), Put("sync", "b", b"")]
        )
        with pytest.raises(Exception, match="type 'object' is not supported"):
            await journal.append(events([2]), [Put("sync", "ann/sent", object())])  # type: ignore[arg-type]
        assert items(await everything(reader)) == [1]
        image = crashed(tmp_path / "j", "killed")
    async with opened(image) as journal:
        assert await journal.load("sync") == {"ann/inbox": b"2", "b": b""}
        assert await journal.load("sync", "ann/") == {"ann/inbox": b"2"}
        assert await journal.load("nothing") == {}


async def test_invalid_write_does_not_affect_others_in_its_commit(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        failed: list[str] = []

        async def bad() -> None:
            try:
                await journal.append([event(1, "\ud800")])
            except UnicodeEncodeError as error:
                failed.append(error.reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bad)
            for number in range(2, 6):
                nursery.start_soon(journal.append, [event(number)])
        assert failed == ["surrogates not allowed"]
        assert sorted(items(await everything(reader))) == [2, 3, 4, 5]


async def test_acknowledgement_is_written_although_another_write_of_the_commit_is_invalid(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        await journal.append(events([1, 2]))
        await trio.sleep(1)
        reader.acknowledge([entry.position for entry in await reader.read(1)])
        journal.writer._save_at = trio.current_time()
        with pytest.raises(UnicodeEncodeError):
            await journal.append([event(3, "\ud800")])
        await trio.sleep(0.5)
        image = crashed(tmp_path / "j", "killed")
    async with opened(image) as journal:
        assert items(await everything(await journal.reader("audit"))) == [2]


async def test_dead_letters_are_requeued_and_discarded(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock(5000.5)
    async with opened(tmp_path / "j", clock) as journal:
        audit, other = await journal.reader("audit"), await journal.reader("other")
        await journal.append(events([1, 2, 3]))
        for entry in await audit.read(10):
            await audit.dead_letter([entry], reason="no", traceback="Traceback …", attempts=5)
        letters = await journal.dead_letters()
        assert [(x.handler, x.reason, x.attempts, x.time) for x in letters] == [
            ("audit", "no", 5, 5000.5)
        ] * 3
        assert await journal.dead_letters("other") == []
        assert [x.number for x in await journal.dead_letters(after=letters[0].number, limit=1)] == [2]
        assert (await journal.dead_letter(2)) == letters[1]
        assert letters[1].event == event(2)
        assert audit.lag == 0

        assert await journal.requeue([letters[1].number, 77]) == 1
        assert await journal.discard([letters[0].number, 77]) == 1
        assert [x.event.item_id for x in await journal.dead_letters()] == ["3"]
        assert items(await everything(audit)) == [2]
        assert items(await everything(other)) == [1, 2, 3]
    async with opened(tmp_path / "j", clock) as journal:
        assert items(await everything(await journal.reader("audit"))) == [2]
        assert await journal.dead_letter(1) is None


async def test_dead_lettering_the_same_entry_twice_gives_one_dead_letter(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        await journal.append(events([1]))
        (entry,) = await reader.read(1)
        await reader.dead_letter([entry], reason="first")
        await reader.dead_letter([entry], reason="second", attempts=2)
        assert [(x.number, x.reason, x.attempts) for x in await journal.dead_letters()] == [(1, "second", 2)]


async def test_recent_events_are_read_once_and_in_order(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock(1000)

    async def recent(journal: Journal, since: float, most: int = 10_000) -> list[str | None]:
        async with aclosing(journal.recent(since, most)) as batches:
            return [event.item_id async for batch in batches for event in batch]

    async with opened(tmp_path / "j", clock) as journal:
        audit = await journal.reader("audit")
        await journal.append(events([1, 2]))
        clock.time = 2000
        await journal.append(events([3]))
        clock.time = 1500  # the clock was set back
        await journal.append(events([4]))
        for entry in await everything(audit):
            await audit.dead_letter([entry], reason="a trial")
        await journal.replay("audit", since=0)
        await journal.requeue([1])
        assert await recent(journal, 0) == ["1", "2", "3", "4"]
        assert await recent(journal, 1800) == ["3", "4"]
        assert await recent(journal, 9999) == []
        later = journal.recent(1800, 10_000)
        await journal.append(events([5]))
        assert [event.item_id async for batch in later for event in batch] == ["3", "4"]
    async with opened(tmp_path / "many", clock) as journal:
        await journal.append(events(range(3000)))
        await journal.append(events(range(3000, 5000)))
        assert await recent(journal, 0) == [str(n) for n in range(5000)]
        assert (await recent(journal, 0, most=100))[-100:] == [str(n) for n in range(4900, 5000)]
        assert len(await recent(journal, 0, most=100)) < 100 + 2 * 256


async def test_replay_redelivers_to_one_handler(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock(1000)
    async with opened(tmp_path / "j", clock) as journal:
        audit, other = await journal.reader("audit"), await journal.reader("other")
        await journal.append(events([1]))
        clock.time = 2000
        await journal.append([event(2), event(3, "Bob@x.example"), event(4)])
        clock.time = 1500  # the clock was set back
        await journal.append([event(5, "bob@x.example")])
        for reader in (audit, other):
            reader.acknowledge(entry.position for entry in await everything(reader))

        assert await journal.replay("audit", since=1800) == 4
        assert await journal.replay("audit", since=0, mailbox="BOB@x.example") == 2
        assert await journal.replay("audit", since=9999) == 0
        await journal.append(events([6]))
        again = await everything(audit)
        assert items(again) == [2, 3, 4, 5, 3, 5, 6]
        assert [e.position for e in again] == sorted({e.position for e in again})
        assert items(await everything(other)) == [6]
        audit.acknowledge(entry.position for entry in again if entry.event.item_id != "5")
    async with opened(tmp_path / "j", clock) as journal:
        assert items(await everything(await journal.reader("audit"))) == [5, 5]
        with pytest.raises(JournalError, match='unknown handler "adit"; known handlers: audit, other'):
            await journal.replay("adit", since=0)


async def test_handler_can_have_only_one_reader(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.reader("audit")
        with pytest.raises(JournalError, match='handler "audit" already has a reader'):
            await journal.reader("audit")


async def test_concurrent_appends_share_a_commit(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(journal.append, events([number * 2, number * 2 + 1]))
        got = items(await everything(reader, 1000))
        assert sorted(got) == list(range(400))
        assert all(got[i] + 1 == got[i + 1] for i in range(0, 400, 2))
        (rows,) = journal._reading.execute("SELECT count(*) FROM chunks").fetchone()
        assert rows < 10


async def test_cancelled_append_does_not_affect_others(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        with trio.move_on_after(0) as scope:
            await journal.append(events([1]))
        assert scope.cancelled_caught
        await journal.append(events([2]))
        assert items(await everything(reader))[-1:] == [2]


async def test_journal_in_memory_keeps_the_same_rules(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(None, memory=2) as journal:
        reader = await journal.reader("audit")
        await journal.append(events(range(10)), [Put("n", "k", b"v")])
        first = await reader.read(3)
        await reader.dead_letter(first[:1], reason="no")
        reader.acknowledge([first[1].position])
        await journal.requeue([1])
        assert items(await everything(reader)) == [3, 4, 5, 6, 7, 8, 9, 0]
        assert await journal.load("n") == {"k": b"v"}


async def test_cancellation_still_writes_acknowledgements(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with opened(tmp_path / "j") as journal:
            reader = await journal.reader("audit")
            await journal.append(events([1, 2]))
            reader.acknowledge([entry.position for entry in await reader.read(1)])
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with opened(tmp_path / "j") as journal:
        assert (await journal.reader("audit")).lag == 1


async def test_append_after_close_is_rejected(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        pass
    with pytest.raises(JournalError, match="closed"):
        await journal.append(events([1]))


async def test_append_that_waits_at_close_fails(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    errors: list[str] = []

    async def late(journal: Journal) -> None:
        try:
            await journal.append(events(range(1000)))
        except JournalError as error:
            errors.append(str(error))

    async with trio.open_nursery() as nursery, opened(tmp_path / "j") as journal:
        connection = journal._store._connection
        assert connection is not None
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        nursery.start_soon(late, journal)
        await trio.sleep(10)
    assert errors == ["the journal is closed"]


async def test_reads_and_writes_in_threads(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        async with open_journal(tmp_path / "j", memory=5) as journal:
            reader = await journal.reader("audit")
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(journal.append, [event(number)])
            got: list[int] = []
            while len(got) < 50:
                entries = await reader.read(7)
                reader.acknowledge(entry.position for entry in entries)
                got += items(entries)
            await journal.flush()
            assert sorted(got) == list(range(50))
            assert journal.figures.lag == {"audit": 0}
    assert [line["event"] for line in lines] == ["journal.opened"]


async def test_acknowledgements_become_durable_during_continuous_appends(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    (tmp_path / "j").mkdir()
    async with opened(tmp_path / "j") as journal:
        reader = await journal.reader("audit")
        for number in range(100):
            await journal.append(events([number]))
            reader.acknowledge([entry.position for entry in await reader.read(10)])
            await trio.sleep(0.01)
        image = crashed(tmp_path / "j", "image")
    async with opened(image) as journal:
        assert (await journal.reader("audit")).lag <= 10
