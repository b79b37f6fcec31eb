"""A journal with damaged rows in which SQLite itself finds no error."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st

from listener.catchup.snapshots import load_snapshot
from listener.catchup.sync_states import JournalStates
from listener.errors import ConfigError
from listener.ews.directory import Expansion
from listener.groups.checkpointer import Checkpointer
from listener.journal import JournalDamagedError, JournalError, Put
from listener.journal.offline import open_offline
from listener.journal.progress import Progress
from listener.journal.records import UNREADABLE
from listener.journal.schema import FILE_NAME
from listener.mailboxes import MailboxSource, Sources
from tests.journal.tools import events, items, opened

KEY = "ann@x.example\x1f"


async def make(state: Path) -> None:
    """Create a journal with all kinds of rows: two handlers, one of which lags; dead letters, a replay, state."""
    async with opened(state) as journal:
        one, two = await journal.reader("one"), await journal.reader("two")
        for start in range(1, 41, 4):
            await journal.append(
                events(range(start, start + 4)),
                [
                    Put("sync", KEY + key, msgspec.msgpack.encode({"compared": 1.0}))
                    for key in ("", f"f{start}")
                ],
            )
        entries = await one.read(20)
        one.acknowledge([entry.position for entry in entries[:10]])
        await one.dead_letter(entries[10:12], reason="no", traceback="t", attempts=3)
        await two.read(3)
        await journal.replay("two", 0)
        await journal.append((), [Put("mailboxes", "g@x.example", msgspec.msgpack.encode(("a@x.example",)))])
        await journal.append(
            (), [Put("subscriptions", "last_seen", b"\x80"), Put("subscriptions", "group\x1fa", b"\x80")]
        )
        await journal.flush()


def change(state: Path, sql: str, *values: object) -> None:
    with sqlite3.connect(state / FILE_NAME) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        assert connection.execute(sql, values).rowcount
    connection.close()


async def read_all(state: Path, handler: str = "one") -> tuple[list[int], list[Any]]:
    with structlog.testing.capture_logs() as lines:
        async with opened(state) as journal:
            reader = await journal.reader(handler)
            found: list[int] = []
            while reader.lag > reader.unfinished:
                entries = await reader.read(1000)
                found += items(entries)
    return found, [line for line in lines if line["log_level"] in ("warning", "error")]


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    await make(tmp_path / "state")
    return tmp_path / "state"


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x90", b"garbage", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, "text", 5, None]
)
async def test_unreadable_events_are_skipped_and_logged(state: Path, body: object) -> None:
    change(state, "UPDATE chunks SET body = ? WHERE last = 16", body)
    found, logged = await read_all(state)
    assert found == [11, 12, *range(17, 41)] or found == [*range(17, 41)]
    (line,) = [line for line in logged if line["event"] == "journal.events_unreadable"]
    assert (line["handler"], line["first"], line["last"], line["count"]) == ("one", 13, 16, 4)


async def test_one_unreadable_event_does_not_affect_the_rest_of_its_chunk(state: Path) -> None:
    with closing(sqlite3.connect(state / FILE_NAME)) as connection:
        (body,) = connection.execute("SELECT body FROM chunks WHERE last = 16").fetchone()
    change(state, "UPDATE chunks SET body = ? WHERE last = 16", body.replace(b"\xa214", b"\xa2\xff4"))
    found, logged = await read_all(state)
    assert [number for number in found if 13 <= number <= 16] == [13, 15, 16]
    (line,) = [line for line in logged if line["event"] == "journal.events_unreadable"]
    assert line["count"] == 1


@pytest.mark.parametrize("count", [0, -5, 1 << 60, "x", b"\xff", 2])
async def test_damaged_count_loses_no_event(state: Path, count: object) -> None:
    change(state, "UPDATE chunks SET count = ? WHERE last = 16", count)
    found, _ = await read_all(state)
    assert found[-28:] == [*range(13, 41)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("upto", -1), ("upto", 1 << 61), ("upto", "x"), ("upto", 5),
        ("cursor", "x"), ("cursor", 1 << 61), ("cursor", 3),
        ("unfinished", b"\xc1"), ("unfinished", b""), ("unfinished", "x"),
        ("unfinished", msgspec.msgpack.encode([1])), ("unfinished", msgspec.msgpack.encode([1, 1 << 50])),
        ("unfinished", msgspec.msgpack.encode([-3, 2])), ("unfinished", msgspec.msgpack.encode([99, 2])),
        ("seen", "x"),
    ],
)  # fmt: skip
async def test_damaged_offset_repeats_events_but_loses_none(state: Path, column: str, value: object) -> None:
    change(state, f"UPDATE handlers SET {column} = ? WHERE name = 'one'", value)
    found, logged = await read_all(state)
    assert set(found) >= {*range(13, 41)}
    if column != "seen":
        (line,) = [line for line in logged if line["event"] == "journal.progress_unreadable"]
        assert line["handler"] == "one"
    assert await read_all(state) == (found, []), "it was repaired"


async def test_impossible_position_is_damage(state: Path) -> None:
    change(state, "UPDATE chunks SET last = ? WHERE last = (SELECT max(last) FROM chunks)", 2**63 - 2)
    with pytest.raises(ConfigError, match=r"journal\.db: is damaged: .*sqlite3 journal\.db \.recover"):
        async with opened(state):
            pass


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE state",
        "ALTER TABLE chunks RENAME COLUMN body TO bodz",
        "ALTER TABLE handlers RENAME TO handlerz",
    ],
)
async def test_error_for_a_damaged_schema_has_a_remedy(state: Path, sql: str) -> None:
    connection = sqlite3.connect(state / FILE_NAME)
    connection.execute(sql)
    connection.close()
    with pytest.raises(ConfigError, match=r"journal\.db: is damaged.*recover"):
        async with opened(state):
            pass


async def test_table_dropped_at_runtime_ends_the_journal(state: Path) -> None:
    closed = pytest.RaisesExc(JournalError, match="closed")
    damaged = pytest.RaisesExc(JournalDamagedError, match="recover")
    with pytest.RaisesGroup(damaged, closed, flatten_subgroups=True):
        async with opened(state) as journal:
            connection = sqlite3.connect(state / FILE_NAME)
            connection.execute("DROP TABLE chunks")
            connection.close()
            await journal.append(events([99]))


@pytest.mark.parametrize("value", ["text", 5, b"\xff\xff", b"", b"\xdd\xff\xff\xff\xff"])
async def test_unreadable_state_is_discarded(state: Path, value: object) -> None:
    change(state, "UPDATE state SET value = ?", value)
    with structlog.testing.capture_logs() as lines:
        async with opened(state) as journal:
            states = JournalStates(journal)
            assert await load_snapshot(states, "ann@x.example") == (None, {}, None)
            mailbox_source = MailboxSource(
                sources=Sources(groups=("g@x.example",)), expand=never, changed=lambda: None
            )
            await mailbox_source.recall(journal)
            assert mailbox_source.mailboxes == ()
            groups, last_seen = await Checkpointer(journal).load()
            assert groups == []
            assert not last_seen.groups
    logged = {line["event"] for line in lines if line["log_level"] == "warning"}
    assert logged >= (
        {"catchup.state_unreadable", "mailboxes.state_unreadable", "checkpoint.unreadable"}
        if isinstance(value, bytes)
        else {"journal.state_unreadable"}
    )


async def test_unreadable_dead_letters_can_be_shown_and_deleted(state: Path) -> None:
    change(
        state,
        "UPDATE dead_letters SET event = ?, reason = ?, time = ? WHERE number = 1",
        b"\xc1",
        b"\xff",
        "x",
    )
    with open_offline(state) as offline:
        first, second = offline.dead_letters()
        assert first.event.type == "unreadable"
        assert second.event.item_id == "12"
        assert offline.requeue([1, 2]) == 1
        assert offline.discard([1]) == 1


@given(st.integers(0, 10**6), st.binary(max_size=30))
def test_unpacking_any_bytes_is_bounded_and_raises_only_unreadable(upto: int, packed: bytes) -> None:
    try:
        progress = Progress.unpack(upto, packed)
    except UNREADABLE:
        return
    assert all(0 < position <= upto for position in progress.unfinished)


@given(st.integers(0, 10**6), st.lists(st.integers(-(2**62), 2**62), max_size=6))
def test_unpacking_any_runs_is_bounded(upto: int, runs: list[int]) -> None:
    test = msgspec.msgpack.encode(runs)
    try:
        progress = Progress.unpack(upto, test)
    except UNREADABLE:
        return
    assert len(progress) <= upto


async def never(_group: str) -> Expansion:
    raise AssertionError("must not be called")


ALLOWED = (ConfigError, JournalError)


async def start(state: Path) -> None:
    """Use the journal as the daemon and the offline commands do."""
    with open_offline(state) as offline:
        offline.dead_letters()
        offline.handlers()
        offline.requeue([1])
    async with opened(state) as journal:
        for name in ("one", "two"):
            reader = await journal.reader(name)
            with trio.move_on_after(10) as scope:
                while reader.lag > reader.unfinished:
                    reader.acknowledge([entry.position for entry in await reader.read(100)])
            assert not scope.cancelled_caught
        async for _ in journal.recent(0, 1000):
            pass
        states = JournalStates(journal)
        for mailbox in ("ann@x.example", "bob@x.example"):
            await load_snapshot(states, mailbox)
        mailbox_source = MailboxSource(
            sources=Sources(groups=("g@x.example",)), expand=never, changed=lambda: None
        )
        await mailbox_source.recall(journal)
        await Checkpointer(journal).load()
        await journal.forget("sync", (), 1e12)
        await journal.append(events(range(100, 120)), [Put("sync", KEY, b"x")])
        await journal.replay("one", 0, "ann@x.example")
        await journal.flush()
        journal.writer._store.sweep(1e9, {"one"})


def flipped(data: bytes, random_: random.Random, flips: int) -> bytes:
    changed = bytearray(data)
    for _ in range(flips):
        changed[random_.randrange(100, len(changed))] ^= 1 << random_.randrange(8)
    return bytes(changed)


def overwritten(data: bytes, random_: random.Random, flips: int) -> bytes:
    changed = bytearray(data)
    for _ in range(flips):
        changed[random_.randrange(100, len(changed))] = random_.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("damage", [flipped, overwritten])
@pytest.mark.parametrize("seed", range(8))
async def test_random_damage_is_tolerated_or_reported_with_the_path(
    tmp_path: Path, state: Path, seed: int, damage: Callable[[bytes, random.Random, int], bytes]
) -> None:
    """The journal works, or fails with one of ALLOWED, whose text has the path. Most changes hit a page in use."""
    random_ = random.Random(seed)
    sound = (state / FILE_NAME).read_bytes()
    worked, texts = 0, list[str]()
    for round_ in range(12):
        copy = tmp_path / f"copy{round_}"
        copy.mkdir()
        (copy / FILE_NAME).write_bytes(damage(sound, random_, random_.choice([1, 1, 3, 20])))
        try:
            await start(copy)
            worked += 1
        except* ALLOWED as errors:
            texts.append(str(errors.exceptions[0]))
        shutil.rmtree(copy)
    assert all(FILE_NAME in text or "handler" in text for text in texts)
    assert worked, "most changes are harmless"
