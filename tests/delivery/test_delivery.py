"""Handlers that raise, hang, reject and lag, on a virtual clock."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import msgspec
import pytest
import structlog.testing
import trio
import trio.testing

from listener import Handler, MailboxEvent, Reject, Retry
from listener.backoff import Backoff
from listener.delivery.delivery import Delivery, DeliveryLimits, Worker
from listener.errors import ConfigError
from tests.fakes import FakeJournal
from tests.journal.tools import opened

LIMITS = DeliveryLimits(queue=100, timeout=30, attempts=3, retry=Backoff(first=1, factor=2, cap=60))


def event(number: int, kind: str = "exchange.item.created") -> MailboxEvent:
    return MailboxEvent(type=kind, mailbox="ann@x.example", time="2026-01-01T00:00:00Z", item_id=str(number))


@dataclass
class Plugin:
    """A plugin whose handler calls `act` and records the handled events."""

    act: Callable[[MailboxEvent], Awaitable[None]] | None = None
    name: str = "good"
    handled: list[str] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    wants: str = "exchange.item.created"

    @property
    def accepts(self) -> "Plugin":
        return self

    def matches(self, event: MailboxEvent, /) -> bool:
        return event.type == self.wants

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Handler]:
        self.opened += 1

        async def handle(event: MailboxEvent) -> None:
            if self.act is not None:
                await self.act(event)
            self.handled.append(event.item_id or "")

        try:
            yield handle
        finally:
            self.closed += 1


@asynccontextmanager
async def running(
    *plugins: Plugin, limits: DeliveryLimits = LIMITS, journal: FakeJournal | None = None
) -> AsyncIterator[Delivery]:
    delivery = Delivery(tuple(Worker(plugin, limits) for plugin in plugins))
    journal = journal or FakeJournal()
    async with trio.open_nursery() as nursery:
        await nursery.start(delivery.run, journal)
        yield delivery
        nursery.cancel_scope.cancel()


async def test_each_handler_receives_the_events_that_match_its_filter_in_order() -> None:
    good, folders = Plugin(), Plugin(name="folders", wants="exchange.folder.created")
    async with running(good, folders) as delivery:
        await delivery.publish([event(1), event(2, "exchange.folder.created"), event(3)])
        await delivery.drain(1)
    assert (good.handled, folders.handled) == (["1", "3"], ["2"])
    assert (good.opened, good.closed) == (1, 1)


async def test_event_is_retried_after_an_exception_and_the_handler_is_logged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    attempts: list[float] = []

    async def act(_: MailboxEvent) -> None:
        attempts.append(trio.current_time())
        if len(attempts) < 3:
            raise ValueError("no")

    bad = Plugin(act, name="bad")
    with structlog.testing.capture_logs() as lines:
        async with running(bad) as delivery:
            await delivery.publish([event(1)])
            await delivery.drain(100)
    assert bad.handled == ["1"]
    assert [later - attempts[0] for later in attempts] == [0, 1, 3]
    failed = [line for line in lines if line["event"] == "handler.failed"]
    assert [(line["handler"], line["attempt"], line["mailbox"]) for line in failed] == [
        ("bad", 1, "ann@x.example"),
        ("bad", 2, "ann@x.example"),
    ]
    assert isinstance(failed[0]["exc_info"], ValueError)


async def test_event_is_dead_lettered_after_all_attempts_and_the_next_is_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def act(event: MailboxEvent) -> None:
        if event.item_id == "1":
            raise ValueError("never")

    bad = Plugin(act)
    with structlog.testing.capture_logs() as lines:
        async with running(bad) as delivery:
            await delivery.publish([event(1), event(2)])
            await delivery.drain(100)
            assert (delivery.workers[0].delivered, delivery.workers[0].dead_lettered) == (1, 1)
    assert bad.handled == ["2"]
    assert [line["id"] for line in lines if line["event"] == "handler.dead_lettered"] == [event(1).id]


async def test_timeout_is_logged_and_does_not_affect_other_handlers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def act(_: MailboxEvent) -> None:
        await trio.sleep_forever()

    hanging, good = Plugin(act, name="hanging"), Plugin()
    with structlog.testing.capture_logs() as lines:
        async with running(hanging, good) as delivery:
            started_at = trio.current_time()
            await delivery.publish([event(1)])
            await trio.testing.wait_all_tasks_blocked()
            assert good.handled == ["1"]
            assert trio.current_time() == started_at
            await delivery.drain(1000)
    assert [line["handler"] for line in lines if line["event"] == "handler.timeout"] == ["hanging"] * 3


async def test_retry_waits_for_after_and_reject_is_not_retried(
    autojump_clock: trio.testing.MockClock,
) -> None:
    attempts: list[tuple[str, float]] = []

    async def act(event: MailboxEvent) -> None:
        attempts.append((event.item_id or "", trio.current_time()))
        if event.item_id == "1":
            raise Reject("not for me")
        if len(attempts) == 2:
            raise Retry(after=17)

    plugin = Plugin(act)
    with structlog.testing.capture_logs() as lines:
        async with running(plugin) as delivery:
            await delivery.publish([event(1), event(2)])
            await delivery.drain(100)
    assert [item for item, _ in attempts] == ["1", "2", "2"]
    assert attempts[2][1] - attempts[1][1] == 17
    assert [line["reason"] for line in lines if line["event"] == "handler.rejected"] == ["not for me"]


async def test_slow_handler_does_not_delay_others_and_its_queue_is_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def act(_: MailboxEvent) -> None:
        await trio.sleep(1)

    slow, good = Plugin(act, name="slow"), Plugin()
    journal = FakeJournal()
    async with running(slow, good, limits=replace(LIMITS, queue=2), journal=journal) as delivery:
        await delivery.publish([event(n) for n in range(50)])
        await trio.sleep(10.5)
        assert len(good.handled) == 50
        assert len(slow.handled) == 10
        assert journal.readers["slow"].unfinished <= 2
        assert delivery.workers[0].lag == 40
        await delivery.drain(100)
    assert slow.handled == good.handled


async def test_failed_event_delays_only_its_own_mailbox(
    autojump_clock: trio.testing.MockClock,
) -> None:
    when: dict[str, float] = {}

    async def act(event: MailboxEvent) -> None:
        if event.item_id == "1" and trio.current_time() < 1:
            raise ValueError("not yet")
        when[event.item_id or ""] = round(trio.current_time(), 3)

    async with running(Plugin(act)) as delivery:
        bob = msgspec.structs.replace(event(3), mailbox="bob@x.example")
        await delivery.publish([event(1), event(2), bob])
        await delivery.drain(100)
    assert when == {"3": 0, "1": 1, "2": 1}


async def test_calls_run_concurrently_for_different_mailboxes_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    under_way: list[str] = []
    most = 0

    async def act(event: MailboxEvent) -> None:
        nonlocal most
        assert event.mailbox not in under_way
        under_way.append(event.mailbox)
        most = max(most, len(under_way))
        await trio.sleep(1)
        under_way.remove(event.mailbox)

    plugin = Plugin(act)
    events = [msgspec.structs.replace(event(n), mailbox=f"user{n % 5}") for n in range(50)]
    async with running(plugin, limits=replace(LIMITS, concurrency=3)) as delivery:
        await delivery.publish(events)
        started_at = trio.current_time()
        await delivery.drain(100)
        assert trio.current_time() - started_at == pytest.approx(17, abs=1)
    assert most == 3
    assert sorted(plugin.handled, key=int) == [str(n) for n in range(50)]


async def test_failed_and_rejected_events_become_dead_letters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def act(event: MailboxEvent) -> None:
        if event.item_id == "1":
            raise Reject("not for me")
        if event.item_id == "2":
            raise ValueError("never")

    journal = FakeJournal()
    async with running(Plugin(act), journal=journal) as delivery:
        await delivery.publish([event(1), event(2), event(3)])
        await delivery.drain(100)
    first, second = journal.letters
    assert (first.event.item_id, first.reason, first.traceback, first.attempts) == ("1", "not for me", "", 1)
    assert (second.event.item_id, second.reason, second.attempts) == ("2", "ValueError: never", 3)
    assert 'raise ValueError("never")' in second.traceback


@dataclass
class Batches:
    """A plugin whose handler receives batches."""

    max_batch: int = 3
    max_wait: float = 5.0
    fails: int = 0
    name: str = "batches"
    batches: list[list[str | None]] = field(default_factory=list)

    @property
    def accepts(self) -> "Batches":
        return self

    def matches(self, event: MailboxEvent, /) -> bool:
        return True

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Batches"]:
        yield self

    async def handle_batch(self, events: Sequence[MailboxEvent], /) -> None:
        self.batches.append([event.item_id for event in events])
        if len(self.batches) <= self.fails:
            raise ValueError("not yet")


@pytest.mark.parametrize("raised", [Retry("later", after=7), Reject("never")])
async def test_retry_and_reject_are_found_in_exception_groups(
    autojump_clock: trio.testing.MockClock, raised: Exception
) -> None:
    attempts: list[float] = []

    async def fail() -> None:
        raise raised

    async def act(_: MailboxEvent) -> None:
        attempts.append(trio.current_time())
        if len(attempts) == 1:
            async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
                nursery.start_soon(fail)
                inner.start_soon(trio.sleep_forever)

    journal = FakeJournal()
    with structlog.testing.capture_logs() as lines:
        async with running(Plugin(act), journal=journal) as delivery:
            await delivery.publish([event(1)])
            await delivery.drain(100)
    if isinstance(raised, Retry):
        assert [later - attempts[0] for later in attempts] == [0, 7]
        assert not journal.letters
    else:
        assert [letter.reason for letter in journal.letters] == ["never"]
    assert "handler.failed" not in [line["event"] for line in lines]


async def test_retry_grouped_with_another_exception_is_a_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def act(_: MailboxEvent) -> None:
        raise ExceptionGroup("both", [Retry("later"), ValueError("no")])

    journal = FakeJournal()
    async with running(Plugin(act), journal=journal) as delivery:
        await delivery.publish([event(1)])
        await delivery.drain(100)
    (letter,) = journal.letters
    assert "ValueError: no" in letter.traceback


async def test_batch_is_dead_lettered_in_one_commit_with_bounded_texts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Bulk:
        max_batch = 100

        async def handle_batch(self, _: Sequence[MailboxEvent]) -> None:
            raise ValueError("x" * 100_000 + "the end")

    class BulkPlugin(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Bulk]:  # type: ignore[override]
            yield Bulk()

    with structlog.testing.capture_logs():
        async with opened(None) as journal, trio.open_nursery() as nursery:
            delivery = Delivery((Worker(BulkPlugin(), LIMITS),))
            await nursery.start(delivery.run, journal)
            await delivery.publish([event(n) for n in range(100)])
            commits = 0
            transact = journal._store.transact

            def counted(writes, *rest):  # type: ignore[no-untyped-def]
                nonlocal commits
                commits += any(write.work is not None for write in writes)
                return transact(writes, *rest)

            journal._store.transact = counted  # type: ignore[method-assign]
            await trio.sleep(100)
            letters = await journal.dead_letters(limit=200)
            nursery.cancel_scope.cancel()
    assert (len(letters), commits) == (100, 1)
    assert max(len(letter.reason) + len(letter.traceback) for letter in letters) < 25_000
    assert letters[0].traceback.rstrip().endswith("the end")


async def test_batch_handler_receives_batches(autojump_clock: trio.testing.MockClock) -> None:
    plugin = Batches()
    async with running(plugin) as delivery:  # type: ignore[arg-type]
        await delivery.publish([event(n) for n in range(7)])
        await trio.sleep(1)
        assert plugin.batches == [["0", "1", "2"], ["3", "4", "5"]]
        await trio.sleep(5)
        assert plugin.batches[2:] == [["6"]]
        await delivery.publish([event(7)])
        await delivery.drain(1)
        assert plugin.batches[3:] == [["7"]]


async def test_failed_batch_is_retried_as_a_whole_and_then_dead_lettered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plugin = Batches(fails=1)
    async with running(plugin) as delivery:  # type: ignore[arg-type]
        await delivery.publish([event(n) for n in range(3)])
        await delivery.drain(100)
    assert plugin.batches == [["0", "1", "2"]] * 2
    failing, journal = Batches(fails=100), FakeJournal()
    async with running(failing, journal=journal) as delivery:  # type: ignore[arg-type]
        await delivery.publish([event(n) for n in range(3)])
        await delivery.drain(100)
    assert len(failing.batches) == 3
    assert [letter.event.item_id for letter in journal.letters] == ["0", "1", "2"]


@pytest.mark.parametrize("batches", [False, True])
async def test_retry_with_counts_false_is_not_an_attempt(
    autojump_clock: trio.testing.MockClock, batches: bool
) -> None:
    attempts: list[float] = []
    down_until = trio.current_time() + 1000

    async def act(_what: object) -> None:
        attempts.append(trio.current_time())
        if trio.current_time() < down_until:
            raise Retry("the database is down", after=60, counts=False)
        raise LookupError("the event is invalid too")

    @dataclass
    class Waiting(Batches):
        async def handle_batch(self, events: Sequence[MailboxEvent], /) -> None:
            await act(events)

    journal = FakeJournal()
    async with running(Waiting(max_wait=0.0) if batches else Plugin(act), journal=journal) as delivery:  # type: ignore[arg-type]
        await delivery.publish([event(1)])
        await delivery.drain(10_000)
    uncounted = [time for time in attempts if time < down_until]
    assert len(uncounted) == 17
    assert len(attempts) - len(uncounted) == LIMITS.attempts
    assert [letter.attempts for letter in journal.letters] == [LIMITS.attempts]


async def test_error_names_a_handler_that_cannot_be_opened() -> None:
    class Broken(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            raise PermissionError("/var/log/acme.jsonl")
            yield

    with pytest.raises(ExceptionGroup) as caught:
        async with running(Plugin(), Broken(name="audit")):
            pass
    (error,) = caught.value.split(ConfigError)[0].exceptions  # type: ignore[union-attr]
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert str(error) == "handlers.audit: could not be opened: PermissionError: /var/log/acme.jsonl"


async def test_failed_context_is_reopened_and_its_event_is_redelivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Fragile(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async with trio.open_nursery() as nursery:
                self.opened += 1

                async def handle(event: MailboxEvent) -> None:
                    if self.opened == 1:
                        nursery.start_soon(crash)
                        await trio.sleep_forever()
                    self.handled.append(event.item_id or "")

                async def crash() -> None:
                    raise OSError("the child is gone")

                yield handle

    fragile = Fragile()
    with structlog.testing.capture_logs() as lines:
        async with running(fragile) as delivery:
            await delivery.publish([event(1)])
            await delivery.drain(100)
    assert (fragile.opened, fragile.handled) == (2, ["1"])
    assert [line["handler"] for line in lines if line["event"] == "handler.crashed"] == ["good"]


async def test_events_left_after_the_grace_period_are_logged_as_lag(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def act(_: MailboxEvent) -> None:
        await trio.sleep(3)

    slow = Plugin(act)
    with structlog.testing.capture_logs() as lines:
        async with running(slow) as delivery:
            await delivery.publish([event(n) for n in range(5)])
            await delivery.drain(10)
    (stopped,) = (line for line in lines if line["event"] == "handler.stopped")
    assert (stopped["delivered"], stopped["lag"]) == (3, 2)


async def test_filtered_events_do_not_delay_the_drain(
    autojump_clock: trio.testing.MockClock,
) -> None:
    good = Plugin()
    delivery = Delivery((Worker(good, LIMITS),))
    async with opened(None, memory=100) as journal:
        await journal.reader("good")
        await journal.release("good")
        for _ in range(20):
            await journal.append([event(n, "exchange.folder.created") for n in range(500)])
        async with trio.open_nursery() as nursery:
            await nursery.start(delivery.run, journal)
            started_at = trio.current_time()
            await delivery.drain(10)
        assert trio.current_time() == started_at
    assert (good.closed, delivery.workers[0].lag) == (1, 0)


async def test_handler_closes_without_cancellation_while_another_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A handler that flushes while closing needs to await, which a cancelled task cannot."""

    class Flushing(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async with super().open() as handle:
                yield handle
            await trio.sleep(2)
            self.handled.append("flushed")

    async def hang(_: MailboxEvent) -> None:
        await trio.sleep_forever()

    hanging, flushing = Plugin(hang, name="hanging"), Flushing()
    with structlog.testing.capture_logs() as lines:
        async with running(hanging, flushing) as delivery:
            await delivery.publish([event(1)])
            started_at = trio.current_time()
            await delivery.drain(10)
            assert trio.current_time() - started_at == 10
    assert (flushing.handled, flushing.closed) == (["1", "flushed"], 1)
    assert hanging.closed == 1
    assert not [line for line in lines if line["event"] == "handler.crashed"]


async def test_handler_that_waits_to_be_reopened_does_not_delay_the_drain(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Ending(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async with super().open() as handle:
                if self.opened > 1:
                    raise OSError("the server is gone")
                with trio.move_on_after(5):
                    yield handle

    ending = Ending()
    async with running(ending) as delivery:
        await trio.sleep(1000)
        started_at = trio.current_time()
        await delivery.drain(100)
        assert trio.current_time() == started_at
    assert ending.closed == ending.opened


async def test_handler_that_fails_while_closing_is_not_reopened(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Failing(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async with super().open() as handle:
                yield handle
            raise OSError("cannot flush")

    failing = Failing()
    with structlog.testing.capture_logs() as lines:
        async with running(failing) as delivery:
            await delivery.publish([event(1)])
            await delivery.drain(100)
    assert (failing.opened, failing.handled) == (1, ["1"])
    assert [line["handler"] for line in lines if line["event"] == "handler.crashed"] == ["good"]


async def test_handler_without_checkpoints_does_not_starve_other_tasks() -> None:
    good = Plugin()
    async with running(good, limits=DeliveryLimits(queue=20_000)) as delivery:
        await delivery.publish([event(n) for n in range(20_000)])
        checkpoints = 0
        while len(good.handled) < 20_000:
            await trio.lowlevel.checkpoint()
            checkpoints += 1
        assert checkpoints > 200
