"""Checkpoints in the journal: batches, intervals, and reading by the next process."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import structlog.testing
import trio
import trio.testing

from listener.groups.checkpoint import GroupCheckpoint, LastSeen, SubscriptionCheckpoint
from listener.groups.checkpointer import BATCH_DELAY, LAST_SEEN_INTERVAL, NAMESPACE, Checkpointer
from listener.journal import JournalError, Put
from listener.journal.sqlite import SqliteJournal, open_journal
from tests.groups.test_checkpoint import saved

WALL = 1_000_000.0


@dataclass
class Groups:
    """A fake group manager."""

    groups: dict[str, GroupCheckpoint] = field(default_factory=dict)
    moments: dict[str, float] = field(default_factory=dict)
    asked: int = 0

    def record(self, name: str, /) -> GroupCheckpoint | None:
        self.asked += 1
        return self.groups.get(name)

    def last_seen_by_group(self) -> tuple[dict[str, float], dict[str, float]]:
        return self.moments, {}


@dataclass
class Bound:
    """A checkpointer with its source."""

    checkpointer: Checkpointer
    groups: Groups

    def note(self, name: str) -> None:
        self.checkpointer.note(name)

    async def load(self) -> tuple[list[GroupCheckpoint], LastSeen]:
        return await self.checkpointer.load()

    async def save_checkpoint(self, name: str) -> None:
        await self.checkpointer.save_checkpoint(name, self.groups)

    async def save(self) -> None:
        await self.checkpointer.save(self.groups)

    async def run(self) -> None:
        await self.checkpointer.run(self.groups)


def checkpointer(journal: SqliteJournal, groups: Groups) -> Bound:
    return Bound(Checkpointer(journal, now=lambda: WALL + trio.current_time()), groups)


async def test_the_next_process_reads_the_checkpoint(autojump_clock: trio.testing.MockClock) -> None:
    async with open_journal(None) as journal:
        groups = Groups({"DAG1/1": saved(), "DAG1/2": saved("DAG1/2")}, {"DAG1/1": 5.25})
        first = checkpointer(journal, groups)
        first.note("DAG1/1")
        first.note("DAG1/2")
        await first.save()
        found, moments = await checkpointer(journal, groups).load()
        assert sorted(found, key=lambda group: group.name) == [saved(), saved("DAG1/2")]
        assert moments == LastSeen(groups={"DAG1/1": WALL + 5.2})


async def test_save_checkpoint_returns_when_durable_with_one_write_for_all_callers(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_journal(None) as journal:
        writes = []
        append = journal.append

        async def slow(*arguments: Any) -> None:
            writes.append(arguments)
            await trio.sleep(5)
            await append(*arguments)

        monkeypatch.setattr(journal, "append", slow)
        groups = Groups({f"DAG1/{n}": saved(f"DAG1/{n}") for n in range(4)})
        first = checkpointer(journal, groups)
        await first.save_checkpoint("DAG1/0")  # there is nothing to write
        for name in groups.groups:
            first.note(name)
        async with trio.open_nursery() as nursery:
            for name in groups.groups:
                nursery.start_soon(first.save_checkpoint, name)
        assert trio.current_time() == pytest.approx(5)
        assert len(writes) == 1
        found, _ = await checkpointer(journal, groups).load()
        assert len(found) == 4


async def test_removed_groups_are_deleted_from_the_checkpoint(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_journal(None) as journal:
        groups = Groups({"DAG1/1": saved(), "DAG1/2": saved("DAG1/2")})
        first = checkpointer(journal, groups)
        first.note("DAG1/1")
        first.note("DAG1/2")
        await first.save()
        del groups.groups["DAG1/1"]
        first.note("DAG1/1")
        await first.save()
        second = checkpointer(journal, Groups())
        assert [group.name for group in (await second.load())[0]] == ["DAG1/2"]
        await second.save()
        assert (await checkpointer(journal, groups).load())[0] == []


async def test_many_changes_make_one_write_and_no_change_makes_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    writes: list[list[str]] = []

    async with open_journal(None) as journal:
        append = journal.append

        async def counted(events: object, changes: object = ()) -> None:
            writes.append([change.key for change in changes])  # type: ignore[attr-defined]
            await append(events, changes)  # type: ignore[arg-type]

        journal.append = counted  # type: ignore[method-assign]
        groups = Groups({"DAG1/1": saved()})
        one = checkpointer(journal, groups)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            await trio.sleep(1)
            for _ in range(500):
                one.note("DAG1/1")
            await trio.sleep(BATCH_DELAY + 0.1)
            assert [len(keys) for keys in writes] == [2]
            assert groups.asked == 1
            one.note("DAG1/1")
            await trio.sleep(100)
            assert [len(keys) for keys in writes] == [2]
            groups.moments["DAG1/1"] = trio.current_time()
            await trio.sleep(LAST_SEEN_INTERVAL)
            assert writes[1:] == [["last_seen"]]
            nursery.cancel_scope.cancel()


async def test_a_failed_write_is_retried(autojump_clock: trio.testing.MockClock) -> None:
    async with open_journal(None) as journal:
        one = checkpointer(journal, Groups({"DAG1/1": saved()}))
        one.note("DAG1/1")
        append = journal.append

        async def refuse(_events: object, _changes: object = ()) -> None:
            raise JournalError("the journal is closed")

        journal.append = refuse  # type: ignore[method-assign, assignment]
        with pytest.raises(JournalError):
            await one.save()
        journal.append = append  # type: ignore[method-assign]
        await one.save()
        assert len(await journal.load(NAMESPACE)) == 2


async def test_entries_of_another_version_are_left_out(autojump_clock: trio.testing.MockClock) -> None:
    async with open_journal(None) as journal:
        unknown = msgspec.msgpack.encode({"name": "DAG1/1", "members": ["ann"]})
        await journal.append((), [Put(NAMESPACE, "group\x1fDAG1/1", unknown)])
        with structlog.testing.capture_logs() as lines:
            assert await checkpointer(journal, Groups()).load() == ([], LastSeen())
        assert [line["event"] for line in lines] == ["checkpoint.unreadable"]


async def test_unreadable_entries_are_logged_without_cookies(autojump_clock: trio.testing.MockClock) -> None:
    group = msgspec.to_builtins(saved()) | {"members": {"ann": SubscriptionCheckpoint("1", "all"), "bob": 7}}
    async with open_journal(None) as journal:
        await journal.append((), [Put(NAMESPACE, "group\x1fDAG1/1", msgspec.msgpack.encode(group))])
        with structlog.testing.capture_logs() as lines:
            await checkpointer(journal, Groups()).load()
        assert "BE1" not in str(lines)


async def test_a_moment_does_not_drift_over_many_processes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each process reads its two clocks one after the other, which shifts the moment a little."""
    async with open_journal(None) as journal:
        moment, first = 5.0, WALL + 5.0
        for _ in range(20):
            await checkpointer(journal, Groups(moments={"DAG1/1": moment})).save()
            _, moments = await checkpointer(journal, Groups()).load()
            assert moments.groups["DAG1/1"] == pytest.approx(first, abs=0.1)
            moment = moments.groups["DAG1/1"] - WALL - 0.002
