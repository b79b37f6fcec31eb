"""Any exception of a plugin is a failed attempt: the event is retried, then dead-lettered; other handlers go on."""

import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from listener import BatchHandler, Handler, MailboxEvent, Retry
from listener.config import parse
from listener.delivery.delivery import Delivery, Source, Worker
from listener.errors import ConfigError, OpeningError
from listener.plugins import load_handlers
from tests.delivery.test_delivery import LIMITS, Plugin, event
from tests.journal.tools import opened
from tests.system.plugins import acme

KINDS = [*acme.RAISED, "cancelled"]


async def raise_(kind: str) -> None:
    raise await acme._kept_cancelled() if kind == "cancelled" else acme.RAISED[kind]()


@asynccontextmanager
async def running(*sources: Source) -> AsyncIterator[Delivery]:
    """Run with the real journal, because the texts of exceptions must be storable."""
    delivery = Delivery(tuple(Worker(source, LIMITS) for source in sources))
    async with opened(None) as journal, trio.open_nursery() as nursery:
        await nursery.start(delivery.run, journal)
        yield delivery
        nursery.cancel_scope.cancel()


async def letters(delivery: Delivery) -> list[tuple[str, str]]:
    assert delivery._journal is not None
    found = await delivery._journal.dead_letters()
    assert all(len(letter.reason) < 5000 and len(letter.traceback) < 17_000 for letter in found)
    return [(letter.event.item_id or "", letter.reason[:40]) for letter in found]


@pytest.mark.parametrize("kind", KINDS)
async def test_any_exception_of_a_handler_is_a_failed_attempt(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    attempts = 0

    async def act(_: MailboxEvent) -> None:
        nonlocal attempts
        attempts += 1
        await raise_(kind)

    bad, good = Plugin(act, name="bad"), Plugin()
    with structlog.testing.capture_logs() as lines:
        async with running(bad, good) as delivery:
            await delivery.publish([event(1), event(2)])
            await delivery.drain(100)
            assert [item for item, _ in await letters(delivery)] == ["1", "2"]
    assert attempts == 6
    assert good.handled == ["1", "2"]
    assert [line["event"] for line in lines].count("handler.failed") == 6
    assert not [line for line in lines if line["event"] == "handler.crashed"]


@pytest.mark.parametrize("kind", KINDS)
async def test_any_exception_of_a_batch_handler_is_a_failed_attempt(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    class Batches:
        max_batch = 10

        async def handle_batch(self, events: Sequence[MailboxEvent]) -> None:
            await raise_(kind)

    class Batched(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[BatchHandler]:  # type: ignore[override]
            yield Batches()

    async with running(Batched()) as delivery:
        await delivery.publish([event(1), event(2)])
        await delivery.drain(100)
        assert [item for item, _ in await letters(delivery)] == ["1", "2"]


@pytest.mark.parametrize("kind", KINDS)
async def test_exception_of_a_filter_is_a_failed_attempt(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    class Filtered(Plugin):
        def matches(self, event: MailboxEvent, /) -> bool:
            if event.item_id == "1":
                raise trio.Cancelled._create() if kind == "cancelled" else acme.RAISED[kind]()
            return event.item_id != "2"

    class Batched(Filtered):
        max_batch = 10

        async def handle_batch(self, events: Sequence[MailboxEvent]) -> None:
            self.handled += [event.item_id or "" for event in events]

        @asynccontextmanager
        async def open(self) -> AsyncIterator[BatchHandler]:  # type: ignore[override]
            yield self

    one, many = Filtered(name="one"), Batched(name="many")
    async with running(one, many) as delivery:
        await delivery.publish([event(1), event(2), event(3)])
        await delivery.drain(100)
        assert [item for item, _ in await letters(delivery)] == ["1", "1"]
    assert one.handled == many.handled == ["3"]


@pytest.mark.parametrize("kind", KINDS)
async def test_any_exception_while_opening_names_the_handler(kind: str) -> None:
    class Closed(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            await raise_(kind)
            yield self.handled.append  # type: ignore[misc]

    with pytest.RaisesGroup(pytest.RaisesExc(OpeningError, match=r"handlers\.good: could not be opened"),
                            flatten_subgroups=True, allow_unwrapped=True):  # fmt: skip
        async with running(Closed()):
            pytest.fail("opened")


@pytest.mark.parametrize("kind", KINDS)
async def test_repeated_failures_of_the_context_count_as_attempts(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    """A task in the plugin's own nursery fails for one event."""

    class Spawning(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            self.opened += 1

            async def handle(event: MailboxEvent) -> None:
                if event.item_id == "1":
                    nursery.start_soon(raise_, kind)
                    await trio.sleep_forever()
                self.handled.append(event.item_id or "")

            async with trio.open_nursery() as nursery:
                yield handle
                nursery.cancel_scope.cancel()

    if kind == "cancelled":
        return  # the plugin's nursery takes a Cancelled for the end of one of its own scopes
    bad = Spawning()
    async with running(bad) as delivery:
        await delivery.publish([event(1), event(2)])
        await delivery.drain(100)
        assert [item for item, _ in await letters(delivery)] == ["1"]
    assert bad.handled == ["2"]
    assert bad.opened == 4


@pytest.mark.parametrize("kind", KINDS)
async def test_exception_inside_a_nursery_of_the_handler(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def act(_: MailboxEvent) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await raise_(kind)

    async with running(Plugin(act)) as delivery:
        await delivery.publish([event(1)])
        await delivery.drain(100)
        assert [item for item, _ in await letters(delivery)] == ([] if kind == "cancelled" else ["1"])


@pytest.mark.parametrize("kind", KINDS)
async def test_exception_while_closing_is_logged(kind: str) -> None:
    class Leaving(Plugin):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Handler]:
            async def handle(event: MailboxEvent) -> None:
                self.handled.append(event.item_id or "")

            yield handle
            await raise_(kind)

    bad, good = Leaving(name="bad"), Plugin()
    with structlog.testing.capture_logs() as lines:
        async with running(bad, good) as delivery:
            await delivery.publish([event(1)])
            await trio.testing.wait_all_tasks_blocked()
            await delivery.drain(5)
    assert bad.handled == good.handled == ["1"]
    assert [line["handler"] for line in lines if line["event"] == "handler.crashed"] == ["bad"]


async def test_cancellation_by_the_daemon_is_not_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    async def act(_: MailboxEvent) -> None:
        await trio.sleep_forever()

    with structlog.testing.capture_logs() as lines:
        async with running(Plugin(act)) as delivery:
            await delivery.publish([event(1)])
            await trio.testing.wait_all_tasks_blocked()
    assert not [line for line in lines if line["event"] in ("handler.failed", "handler.crashed")]


@pytest.mark.parametrize("after", [float("nan"), float("inf"), -1, "soon", object()])
async def test_retry_with_an_invalid_after_uses_the_configured_backoff(
    after: object, autojump_clock: trio.testing.MockClock
) -> None:
    attempts = []

    async def act(_: MailboxEvent) -> None:
        attempts.append(trio.current_time())
        if len(attempts) == 1:
            raise Retry(after=after)  # type: ignore[arg-type]

    async with running(Plugin(act)) as delivery:
        await delivery.publish([event(1)])
        await delivery.drain(100)
    assert [at - attempts[0] for at in attempts] == [0, 1]


@pytest.mark.parametrize(("most", "wait"), [(0, 0), (-1, 0), ("10", 0), (10, float("nan")), (10, "1")])
async def test_batch_handler_with_invalid_limits_is_not_opened(most: object, wait: object) -> None:
    class Batches(Plugin):
        max_batch, max_wait = most, wait

        async def handle_batch(self, events: Sequence[MailboxEvent]) -> None:
            pass

        @asynccontextmanager
        async def open(self) -> AsyncIterator[BatchHandler]:  # type: ignore[override]
            yield self  # type: ignore[misc]

    with pytest.RaisesGroup(pytest.RaisesExc(OpeningError, match="max_"), flatten_subgroups=True,
                            allow_unwrapped=True):  # fmt: skip
        async with running(Batches()):
            pass


# --- loading

REST = {"auth": {"user": "u", "password": "p"}, "mailboxes": {"addresses": ["a@b.c"]}}


def load(use: str, **options: object) -> None:
    load_handlers(parse(REST | {"handlers": {"x": {"use": use, **options}}}, Path("/")).handlers)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def write(text: str) -> None:
        (tmp_path / "acme_odd.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "acme_odd", raising=False)

    return write


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "class Own(BaseException): pass\nraise Own",
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
        "raise ValueError('\\udc80' + 'x' * 10_000_000)",
        "def __getattr__(name): raise SystemExit(4)",
        "def open_it(*, key: 1 / 0 = 3): ...",
        "def open_it(*, key: '1 / 0' = 3): ...",
        """
class F:
    def __call__(self, *, key=1): ...
    @property
    def __signature__(self): raise SystemExit
open_it = F()
""",
        """
import pydantic, typing
def bad(value): raise SystemExit
def open_it(*, key: typing.Annotated[int, pydantic.AfterValidator(bad)]): ...
""",
    ],
)
def test_exception_while_loading_is_a_configuration_problem(module: Callable[[str], None], text: str) -> None:
    module(text)
    with pytest.raises(ConfigError, match=r"handlers\.x.*(cannot (import|load)|checked)") as caught:
        load("acme_odd:open_it", key=3)
    assert len(str(caught.value)) < 6000
    str(caught.value).encode()


def test_sigint_during_an_import_is_not_a_failure_of_the_module(
    module: Callable[[str], None],
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        module("import signal\nsignal.raise_signal(signal.SIGINT)")
        with pytest.raises(KeyboardInterrupt):
            load("acme_odd:open_it")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
