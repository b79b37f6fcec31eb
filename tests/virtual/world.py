"""A daemon and a simulated organization in one process, without sockets, on a virtual clock."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import msgspec
import structlog.testing
import trio

import listener.build
import listener.daemon
from listener import Handler, MailboxEvent
from listener.catchup.catchup import CatchUp
from listener.config import Config
from listener.daemon import Daemon, open_daemon
from listener.demo.session import GapObserver
from listener.demo.verdict import Call, Comparison, call_of, compare_in_detail, read_ledger
from listener.journal.sqlite import open_journal
from listener.simulator import faults
from listener.simulator.exchange import Exchange
from listener.simulator.fault_plans import Plan
from listener.simulator.ledger import Ledger, Line
from listener.simulator.settings import Settings
from listener.simulator.traffic import Traffic, make
from tests.virtual.wire import EPOCH, Wire, clock

URL = "https://mail.contoso.example"


@dataclass
class RecordingHandler:
    """A handler that records when it received each event, by the id of the item or folder."""

    received_at: dict[str, float] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    lifecycle: list[MailboxEvent] = field(default_factory=list)
    name: str = "notes"

    @property
    def accepts(self) -> "RecordingHandler":
        return self

    def matches(self, _event: MailboxEvent, /) -> bool:
        return True

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Handler]:
        async def handle(event: MailboxEvent) -> None:
            if event.type.startswith("exchange.listener."):
                self.lifecycle.append(event)
            else:
                self.calls.append(call_of(event, clock()))
                self.received_at.setdefault(event.item_id or event.folder_id or "", trio.current_time())

        yield handle


@dataclass
class World:
    """A running daemon, the simulated Exchange that it listens to, and the transport (`wire`) between them.

    `recorder`: its handler. `log`: its log so far. `lines`: the ledger of all changes.
    """

    daemon: Daemon
    exchange: Exchange
    wire: Wire
    recorder: RecordingHandler
    log: list[Any]
    users: Traffic
    lines: list[Line]
    observer: GapObserver
    rng: Random = field(default_factory=lambda: Random(4))

    @property
    def mailboxes(self) -> list[str]:
        return sorted(mailbox.address for mailbox in self.exchange.directory)

    @property
    def streaming(self) -> int:
        """Number of mailboxes with a stream on both sides: the daemon's view must agree with the server's."""
        known = {each.mailbox for each in self.exchange.subscriptions if each.stream and not each.gone}
        return min(self.daemon.manager.streaming, len(known))

    def all_stream(self, count: int) -> bool:
        """Return whether at least `count` mailboxes have a stream. The cheaper check comes first."""
        return self.daemon.manager.streaming >= count and self.streaming >= count

    async def until_streaming(self, count: int | None = None, *, within: float = 60.0) -> float:
        """Wait until `count` mailboxes, or all, stream; return the seconds that it took."""
        count = len(self.mailboxes) if count is None else count
        started_at = trio.current_time()
        while not self.all_stream(count):
            assert trio.current_time() - started_at <= within, f"{self.streaming} of {count} after {within} s"
            await trio.sleep(0.05)
        return trio.current_time() - started_at

    def change(self, mailbox: str, kind: str = "NewMailEvent") -> list[Line]:
        """Make a change in a mailbox; return its lines of the ledger."""
        found = self.exchange.directory.find(mailbox)
        assert found is not None
        made = self.exchange.publish(make(found, kind, self.rng, clock()))
        self.lines += made
        return made

    def change_each(self, *mailboxes: str) -> set[str]:
        """Make a change in each of these mailboxes, or in all; return the ids of the changed things."""
        lines = [line for mailbox in mailboxes or self.mailboxes for line in self.change(mailbox)]
        return {line.item_id or line.folder_id or "" for line in lines}

    def inject(self, kind: str, **parameters: Any) -> list[Line]:
        """Inject a fault now."""
        return self.exchange.fault_scheduler.make_now(faults.parse({"kind": kind, **parameters}), clock())

    def books(self) -> Comparison:
        """Compare the changes with the events that the handler received."""
        ledger, _ = read_ledger(map(msgspec.json.encode, self.lines))
        return compare_in_detail(ledger, self.recorder.calls, self.observer.gaps())

    async def caught_up(self, *, within: float) -> None:
        """Wait until each mailbox has been compared."""
        catch_up, started_at = self.daemon.catch_up, trio.current_time()
        catch_up.sweep()
        while lagging := catch_up.lagging(started_at):
            assert trio.current_time() - started_at <= within, f"{lagging} mailboxes after {within} s"
            await trio.sleep(0.5)

    def subscribe_count(self, since: float) -> int:
        """Return the number of Subscribe requests since then."""
        return sum(moment >= since for moment, _, what in self.wire.requests if what == "Subscribe")

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]


@asynccontextmanager
async def open_world(
    settings: Settings, *, plan: Plan = (), traffic: float = 0.0, **sections: dict[str, Any]
) -> AsyncIterator[World]:
    """Run a daemon with these sections of the configuration. It has stopped regularly when the context is left."""
    exchange = Exchange(settings, Ledger(None), clock())
    exchange.base_url = URL
    exchange.fault_scheduler.start_plan(plan, clock())
    wire = Wire(exchange)
    recorder = RecordingHandler()
    original = listener.build.access
    observer = GapObserver(lambda moment: moment + EPOCH)
    with (
        TemporaryDirectory() as directory,
        structlog.testing.capture_logs() as log,
        patch.object(
            listener.daemon, "access", lambda config: dataclasses.replace(original(config), transport=wire)
        ),
        patch.object(listener.daemon, "CatchUp", partial(CatchUp, now=now)),
    ):
        config = configuration(settings, exchange, sections, directory)
        lines: list[Line] = []
        users = Traffic(list(exchange.directory), traffic, Random(f"traffic {settings.seed}"))
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_exchange, exchange, users, lines)
            async with (
                open_daemon(
                    config, [recorder], open_journal=partial(open_journal, None), observer=observer
                ) as daemon,
                trio.open_nursery() as listening,
            ):
                listening.start_soon(daemon.run, stop)
                yield World(daemon, exchange, wire, recorder, log, users, lines, observer)
                stop.set()
            nursery.cancel_scope.cancel()


def now() -> datetime:
    return datetime.fromtimestamp(clock(), UTC)


async def run_exchange(exchange: Exchange, traffic: Traffic, lines: list[Line]) -> None:
    """Run the user traffic and the planned faults, and advance the server's clock."""
    fault_scheduler = exchange.fault_scheduler
    while True:
        changed = trio.Event()
        traffic.wake = fault_scheduler.wake = changed.set
        moment = clock()
        lines += exchange.publish(traffic.due(moment))
        exchange.advance(moment)
        pause = min(
            1 / traffic.rate if traffic.rate else 30.0, 30.0, max(fault_scheduler.deadline - moment, 0.001)
        )
        with trio.move_on_after(min(pause, 0.1) if fault_scheduler.waits_for_stream else pause):
            await changed.wait()


def configuration(
    settings: Settings, exchange: Exchange, sections: dict[str, dict[str, Any]], directory: str
) -> Config:
    document: dict[str, Any] = {
        "exchange": {
            "ews_url": f"{URL}/EWS/Exchange.asmx",
            "autodiscover_url": f"{URL}/autodiscover/autodiscover.svc",
        },
        "auth": {"kind": "basic", "user": settings.user, "password": settings.password},
        "mailboxes": {"addresses": sorted(mailbox.address for mailbox in exchange.directory)},
        "stream": {"heartbeat": settings.heartbeat},
        "handlers": {"notes": {"use": "log"}},
        "state_directory": directory,
    }
    for section, values in sections.items():
        document[section] = document.get(section, {}) | values
    return Config.model_validate(document)
