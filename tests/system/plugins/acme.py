"""Custom handlers for the tests, correct and faulty ones. The daemon imports them by PYTHONPATH."""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from listener import BatchHandler, Handler, MailboxEvent, Reject, Retry


@asynccontextmanager
async def open_slow(*, path: Path, seconds: float = 0.0) -> AsyncIterator[Handler]:
    async def handle(event: MailboxEvent) -> None:
        await trio.sleep(seconds)
        with path.open("a") as file:
            file.write(event.to_json() + "\n")

    with path.with_suffix(".opened").open("a") as file:
        file.write("opened\n")
    yield handle
    with path.with_suffix(".closed").open("a") as file:
        file.write("closed\n")


@asynccontextmanager
async def open_raising() -> AsyncIterator[Handler]:
    async def handle(_event: MailboxEvent) -> None:
        raise LookupError("no such customer")

    yield handle


@asynccontextmanager
async def open_picky() -> AsyncIterator[Handler]:
    async def handle(event: MailboxEvent) -> None:
        if event.type == "exchange.item.new_mail":
            raise Reject("no mail today")
        raise LookupError("no such customer")

    yield handle


@asynccontextmanager
async def open_mute() -> AsyncIterator[Handler]:
    await trio.sleep_forever()
    yield open_mute


@asynccontextmanager
async def open_hanging() -> AsyncIterator[Handler]:
    async def handle(_event: MailboxEvent) -> None:
        await trio.sleep_forever()

    yield handle


@asynccontextmanager
async def open_blocking(*, path: Path) -> AsyncIterator[Handler]:
    async def handle(_event: MailboxEvent) -> None:
        path.touch()
        time.sleep(1000)

    yield handle


class Loader:
    """A batch handler that appends event ids to a file, and asks for one retry."""

    max_batch = 50
    max_wait = 0.2

    def __init__(self, path: Path) -> None:
        self._path = path
        self._calls = 0

    async def handle_batch(self, events: Sequence[MailboxEvent]) -> None:
        self._calls += 1
        if self._calls == 2:
            raise Retry("the database restarts", after=0.1, counts=False)
        with self._path.open("a") as file:
            file.write(json.dumps([event.id for event in events]) + "\n")


@asynccontextmanager
async def open_loader(*, path: Path) -> AsyncIterator[BatchHandler]:
    yield Loader(path)


class OwnExit(BaseException):
    pass


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class HugeError(Exception):
    def __str__(self) -> str:
        return "\x1b[31m" + "x" * 5_000_000


async def _kept_cancelled() -> BaseException:
    caught: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            caught.append(cancelled)
    return caught[0]


RAISED: dict[str, Callable[[], BaseException]] = {
    "system_exit": lambda: SystemExit(7),
    "keyboard_interrupt": KeyboardInterrupt,
    "generator_exit": GeneratorExit,
    "own": lambda: OwnExit("own"),
    "group": lambda: BaseExceptionGroup("several", [SystemExit(7), KeyboardInterrupt(), ValueError("one")]),
    "surrogate": lambda: ValueError("lone \udc80 surrogate"),
    "unprintable": UnprintableError,
    "huge": HugeError,
}


@asynccontextmanager
async def open_explosive(*, kind: str) -> AsyncIterator[Handler]:
    """Open a handler that raises this kind of exception for each event."""

    async def handle(_event: MailboxEvent) -> None:
        raise await _kept_cancelled() if kind == "cancelled" else RAISED[kind]()

    yield handle


@asynccontextmanager
async def open_not(*, kind: str) -> AsyncIterator[Handler]:
    """Fail to open, with this kind of exception."""
    raise RAISED[kind]()
    yield open_not


@asynccontextmanager
async def open_napping(*, seconds: float) -> AsyncIterator[Handler]:
    """Open a handler that blocks the event loop once, for `seconds`."""
    done = False

    async def handle(_event: MailboxEvent) -> None:
        nonlocal done
        if not done:
            done = True
            time.sleep(seconds)

    yield handle
