"""The stream reader on a virtual clock, with a scripted server."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from listener.ews.codes import ExchangeError, Failure
from listener.ews.events import Notification
from listener.ews.stream import Signal
from listener.groups.stream_reader import AFTER_CLOSED, StreamReader
from tests.groups.test_runner import CLOSED, OK, created, gone

RESET = Failure(code="ConnectionReset")


@dataclass
class Body:
    script: AsyncGenerator[bytes, None]
    closed: bool = False

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return await anext(self.script, b"")

    async def aclose(self) -> None:
        self.closed = True
        await self.script.aclose()


@dataclass
class Reading:
    """A reader and the signals that it returned."""

    body: Body
    reader: StreamReader = field(default_factory=lambda: StreamReader(silence=90.0, max_envelope=10_000))
    signals: list[Signal] = field(default_factory=list)
    slow: float = 0.0

    async def open(self) -> Body:
        return self.body

    async def take(self, signals: Sequence[Signal]) -> None:
        await trio.sleep(self.slow)
        self.signals += signals

    async def run(self) -> tuple[Failure, ...]:
        async with self.reader.open(self.open):
            while (signals := await self.reader.receive()) is not None:
                try:
                    await self.take(signals)
                except BaseException:
                    self.reader.undo()
                    raise
        assert self.body.closed
        return self.reader.failures

    @property
    def items(self) -> list[str | None]:
        found = [signal for signal in self.signals if isinstance(signal, Notification)]
        return [event.item_id for note in found for event in note.events if event.item_id]


def reading(script: AsyncGenerator[bytes, None], slow: float = 0.0) -> Reading:
    return Reading(Body(script), slow=slow)


async def test_an_orderly_end(autojump_clock: trio.testing.MockClock) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        whole = OK + created("1", "A") + CLOSED
        for at in range(0, len(whole), 100):
            yield whole[at : at + 100]
            await trio.sleep(10)

    one = reading(script())
    assert await one.run() == ()
    assert (one.items, one.reader.alive, one.reader.cut) == (["A"], True, False)
    assert one.reader.last_seen is not None
    assert one.reader.last_seen > 0


async def test_a_failure_does_not_update_last_seen(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        yield OK
        await trio.sleep(40)
        yield gone("1")

    one = reading(script())
    assert [failure.code for failure in await one.run()] == ["ErrorSubscriptionNotFound"]
    assert one.reader.last_seen is not None
    assert one.reader.last_seen < 40


@pytest.mark.parametrize("rest", [b"", OK[:-10]])
async def test_a_connection_that_breaks_after_closed(
    rest: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Only an incomplete envelope is lost."""

    async def script() -> AsyncGenerator[bytes, None]:
        yield OK + CLOSED + rest
        raise ExchangeError(RESET)

    one = reading(script())
    assert await one.run() == ()
    assert one.reader.cut == bool(rest)


async def test_a_stream_that_cannot_be_opened() -> None:
    one = StreamReader(silence=90.0, max_envelope=10_000)

    async def refuse() -> Body:
        raise ExchangeError(Failure(code="Http503"))

    async with one.open(refuse):
        assert await one.receive() is None
    assert [failure.code for failure in one.failures] == ["Http503"]
    assert (one.alive, one.last_seen) == (False, None)


async def test_a_failure_ends_the_stream_even_if_the_socket_stays_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        yield gone("1")
        await trio.sleep_forever()

    one = reading(script())
    (failure,) = await one.run()
    assert failure.subscription_ids == ("1",)
    assert not one.reader.alive
    assert one.reader.last_seen is None


async def test_silence_after_valid_signals(autojump_clock: trio.testing.MockClock) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        await trio.sleep(50)
        yield OK
        while True:
            await trio.sleep(10)
            yield b" "

    one = reading(script())
    (failure,) = await one.run()
    assert (failure.code, trio.current_time(), one.reader.last_seen) == ("StreamSilent", 140, 50)


async def test_the_time_of_publishing_is_not_silence(autojump_clock: trio.testing.MockClock) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        for item in "ABC":
            yield created("1", item)
            await trio.sleep(80)

    one = reading(script(), slow=1000)
    assert [failure.code for failure in await one.run()] == []
    assert one.items == ["A", "B", "C"]


@pytest.mark.parametrize("end", ["hangs", "breaks"])
async def test_signals_after_closed_are_read_for_some_seconds(
    autojump_clock: trio.testing.MockClock, end: str
) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        yield CLOSED + created("1", "A")
        await trio.sleep(1)
        if end == "breaks":
            raise ExchangeError(RESET)
        await trio.sleep_forever()

    one = reading(script())
    assert await one.run() == ()
    assert one.items == ["A"]
    assert trio.current_time() == (1 if end == "breaks" else AFTER_CLOSED)


async def test_end_within_limits_the_rest_of_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        yield OK
        await trio.sleep(20)
        yield created("1", "late")
        await trio.sleep_forever()

    one = reading(script())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await trio.sleep(10)
        one.reader.end_within(30)
    assert (one.items, one.reader.cut, trio.current_time()) == (["late"], True, 40)


async def test_publishing_is_not_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        yield created("1", "A")
        yield created("1", "B")

    one = reading(script(), slow=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await trio.sleep(10)
        one.reader.end_within(1)
    assert one.items == ["A"]
    assert one.reader.cut


async def test_end_within_does_not_wait_for_the_stream_to_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one = StreamReader(silence=90.0, max_envelope=10_000)

    async def hang() -> Body:
        await trio.sleep_forever()

    async def run() -> None:
        async with one.open(hang):
            assert await one.receive() is None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(10)
        one.end_within(1)
    assert (trio.current_time(), one.cut, one.last_seen) == (11, True, None)


async def test_undo_restores_last_seen(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script() -> AsyncGenerator[bytes, None]:
        yield OK
        await trio.sleep(20)
        yield created("1", "A")

    one = reading(script(), slow=10)
    with trio.move_on_after(35):
        await one.run()
    assert (one.items, one.reader.last_seen) == ([], 0)
