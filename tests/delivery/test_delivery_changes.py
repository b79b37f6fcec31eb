"""Adding, removing and replacing handlers while events are delivered loses and repeats nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from listener import Handler, MailboxEvent
from listener.delivery.delivery import Delivery, Worker
from listener.errors import ConfigError
from listener.journal.sqlite import open_journal
from listener.journal.store import DiskError, Written
from tests.delivery.test_delivery import LIMITS, Plugin, event
from tests.journal.tools import opened


@asynccontextmanager
async def running(*plugins: Plugin) -> AsyncIterator[Delivery]:
    delivery = Delivery(tuple(Worker(plugin, LIMITS) for plugin in plugins))
    async with open_journal(None) as journal, trio.open_nursery() as nursery:
        await nursery.start(delivery.run, journal)
        yield delivery
        await delivery.drain(10)
        nursery.cancel_scope.cancel()


class Broken(Plugin):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[Handler]:
        raise OSError("no such file")
        yield


class Hanging(Plugin):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[Handler]:
        await trio.sleep_forever()
        yield


async def slow(_: MailboxEvent) -> None:
    await trio.sleep(1)


async def settle() -> None:
    await trio.sleep(0.2)


async def test_new_handler_receives_only_later_events(autojump_clock: trio.testing.MockClock) -> None:
    old, new = Plugin(name="old"), Plugin(name="new")
    async with running(old) as delivery:
        await delivery.publish([event(1)])
        await delivery.change([*delivery.workers, Worker(new, LIMITS)])
        await delivery.publish([event(2)])
        await settle()
        assert (old.opened, old.closed) == (1, 0)
    assert (old.handled, new.handled) == (["1", "2"], ["2"])


async def test_removed_handler_is_closed_and_continues_at_its_offset_when_added_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    old, gone = Plugin(name="old"), Plugin(name="gone")
    async with running(old, gone) as delivery:
        await delivery.publish([event(1)])
        await settle()
        with structlog.testing.capture_logs() as lines:
            await delivery.change(delivery.workers[:1])
        assert gone.closed == 1
        assert [line["handler"] for line in lines if line["event"] == "handler.stopped"] == ["gone"]
        await delivery.publish([event(2)])
        await settle()
        await delivery.change([*delivery.workers, Worker(gone, LIMITS)])
        await settle()
    assert old.handled == ["1", "2"]
    assert gone.handled == ["1", "2"]


@pytest.mark.parametrize("wait", [0.0, 0.5, 1.5, 3.2])
async def test_replacing_a_busy_handler_loses_and_repeats_nothing(
    autojump_clock: trio.testing.MockClock, wait: float
) -> None:
    handled: list[str] = []
    first, second = Plugin(slow, handled=handled), Plugin(slow, handled=handled)
    async with running(first) as delivery:
        await delivery.publish([event(n) for n in range(4)])
        await trio.sleep(wait)
        await delivery.change([Worker(second, LIMITS)])
        assert first.closed == 1
        await delivery.publish([event(n) for n in range(4, 6)])
        await trio.sleep(9)
        assert delivery.workers[0].delivered == 6
    assert handled == [str(n) for n in range(6)]


async def test_replacing_a_handler_does_not_wait_for_its_retry(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def fail(_: MailboxEvent) -> None:
        raise ValueError("no")

    bad, good = Plugin(fail), Plugin()
    async with running(bad) as delivery:
        await delivery.publish([event(1), event(2)])
        await trio.sleep(0.1)
        started_at = trio.current_time()
        await delivery.change([Worker(good, LIMITS)])
        assert trio.current_time() - started_at < 0.2
        await settle()
    assert good.handled == ["1", "2"]


async def test_changed_filter_applies_to_later_events(autojump_clock: trio.testing.MockClock) -> None:
    items, folders = Plugin(), Plugin(wants="exchange.folder.created")
    async with running(items) as delivery:
        await delivery.publish([event(1), event(2, "exchange.folder.created")])
        await settle()
        await delivery.change([Worker(folders, LIMITS)])
        await delivery.publish([event(3), event(4, "exchange.folder.created")])
        await settle()
    assert (items.handled, folders.handled) == (["1"], ["4"])


@pytest.mark.parametrize("kind", [Broken, Hanging])
@pytest.mark.parametrize("name", ["good", "other"])
async def test_failed_open_restores_the_previous_handlers(
    autojump_clock: trio.testing.MockClock, kind: type[Plugin], name: str
) -> None:
    good, fine = Plugin(), Plugin(name="fine")
    async with running(good) as delivery:
        await delivery.publish([event(1)])
        await settle()
        staying = [] if name == "good" else list(delivery.workers)
        with pytest.raises(ConfigError, match=f"handlers.{name}: "):
            await delivery.change([*staying, Worker(fine, LIMITS), Worker(kind(name=name), LIMITS)])
        await delivery.publish([event(2)])
        await settle()
        assert [worker.name for worker in delivery.workers] == ["good"]
        assert delivery.workers[0].state == "running"
        assert delivery.workers[0].delivered == 2
        assert (fine.opened, fine.closed) == (1, 1)
    assert good.handled == ["1", "2"]
    assert good.opened == (2 if name == "good" else 1)
    assert fine.handled == []


@pytest.mark.parametrize("name", ["good", "other"])
async def test_drain_while_a_handler_opens(autojump_clock: trio.testing.MockClock, name: str) -> None:
    good, fine = Plugin(), Plugin(name="fine")
    delivery = Delivery((Worker(good, LIMITS),))
    async with open_journal(None) as journal, trio.open_nursery() as outer, trio.open_nursery() as handlers:
        await handlers.start(delivery.run, journal)
        staying = [] if name == "good" else list(delivery.workers)
        outer.start_soon(
            delivery.change, [*staying, Worker(fine, LIMITS), Worker(Hanging(name=name), LIMITS)]
        )
        await trio.sleep(1)
        started_at = trio.current_time()
        await delivery.drain(2)
        handlers.cancel_scope.cancel()
        outer.cancel_scope.cancel()
    assert trio.current_time() - started_at < 3
    assert good.closed == fine.closed == 1


async def test_cancelled_change_restores_the_previous_handlers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handled: dict[str, list[str]] = {"a": [], "b": []}
    plugins = [Plugin(slow, name=name, handled=handled[name]) for name in handled]
    async with running(*plugins) as delivery:
        await delivery.publish([event(1), event(2)])
        await trio.sleep(1.5)
        with trio.move_on_after(0.2) as asked:
            await delivery.change([Worker(Plugin(slow, name=name), LIMITS) for name in handled])
        assert asked.cancelled_caught
        await delivery.publish([event(3)])
        await trio.sleep(5)
        assert [(worker.name, worker.state, worker.lag) for worker in delivery.workers] == [
            ("a", "running", 0),
            ("b", "running", 0),
        ]
    assert handled == {"a": ["1", "2", "3"], "b": ["1", "2", "3"]}


async def test_handler_that_fails_while_it_is_replaced_does_not_delay_the_change(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Failing(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async with super().open() as handle:
                yield handle
            raise OSError("cannot flush")

    async with running(Failing()) as delivery:
        await delivery.publish([event(1)])
        await settle()
        started_at = trio.current_time()
        await delivery.change([Worker(Plugin(), LIMITS)])
        assert trio.current_time() - started_at < 0.2


async def test_handler_that_does_not_close_delays_neither_the_change_nor_the_drain(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Unclosable(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async with super().open() as handle:
                yield handle
            await trio.sleep_forever()

    after = Plugin()
    async with running(Unclosable()) as delivery:
        await delivery.publish([event(1)])
        await settle()
        started_at = trio.current_time()
        with structlog.testing.capture_logs() as lines:
            await delivery.change([Worker(after, LIMITS)])
        assert 0 < trio.current_time() - started_at < 100
        assert [line["handler"] for line in lines if line["event"] == "handler.close_timeout"] == ["good"]
        await delivery.publish([event(2)])
        await settle()
    assert after.handled == ["2"]


async def test_disk_error_does_not_delay_replacing_a_handler(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    old = Plugin()
    async with opened(tmp_path) as journal, trio.open_nursery() as nursery:
        delivery = Delivery((Worker(old, LIMITS),))
        await nursery.start(delivery.run, journal)
        await delivery.publish([event(1)])
        await settle()
        transact = journal._store.transact

        def refuse(*_: object) -> Written:
            raise DiskError("disk full")

        journal._store.transact = refuse  # type: ignore[method-assign, assignment]
        started_at = trio.current_time()
        with pytest.raises(ConfigError, match="not open after"):
            await delivery.change([Worker(new := Plugin(), LIMITS)])
        assert trio.current_time() - started_at < 40
        journal._store.transact = transact  # type: ignore[method-assign]
        await trio.sleep(60)
        await delivery.publish([event(2)])
        await delivery.drain(10)
    assert (old.handled, new.handled) == (["1", "2"], [])


async def test_next_reader_continues_after_the_last_acknowledgements(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path) as journal:
        first = await journal.reader("audit")
        await journal.append([event(n) for n in range(4)])
        entries = await first.read(4)
        first.acknowledge([entries[0].position, entries[2].position])
        await journal.release("audit")
        second = await journal.reader("audit")
        assert [entry.event.item_id for entry in await second.read(4)] == ["1", "3"]
