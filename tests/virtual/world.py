"""The whole daemon and a whole organisation in one process, without a socket, on a virtual clock."""

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
class Notes:
    """A handler that notes when each event came to it, by the id of its item."""

    came: dict[str, float] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    lifecycle: list[MailboxEvent] = field(default_factory=list)
    name: str = "notes"

    @property
    def accepts(self) -> "Notes":
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
                self.came.setdefault(event.item_id or event.folder_id or "", trio.current_time())

        yield handle


@dataclass
class World:
    """A running daemon (`roster`) and what it listens to (`exchange`, behind `wire`); `log` is its log so far."""

    daemon: Daemon
    exchange: Exchange
    wire: Wire
    notes: Notes
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
        """Mailboxes with a stream on both sides: what the daemon believes must be what the server knows."""
        known = {each.mailbox for each in self.exchange.subscriptions if each.stream and not each.gone}
        return min(self.daemon.manager.streaming, len(known))

    def all_stream(self, count: int) -> bool:
        """Whether so many mailboxes have a stream. The cheap side is asked first."""
        return self.daemon.manager.streaming >= count and self.streaming >= count

    async def until_streaming(self, count: int | None = None, *, within: float = 60.0) -> float:
        """Returns how many seconds it took until so many mailboxes, or all, stream."""
        count = len(self.mailboxes) if count is None else count
        started_at = trio.current_time()
        while not self.all_stream(count):
            assert trio.current_time() - started_at <= within, f"{self.streaming} of {count} after {within} s"
            await trio.sleep(0.05)
        return trio.current_time() - started_at

    def make(self, mailbox: str, kind: str = "NewMailEvent") -> list[Line]:
        """A change in a mailbox, and what the ledger says of it."""
        found = self.exchange.directory.find(mailbox)
        assert found is not None
        made = self.exchange.publish(make(found, kind, self.rng, clock()))
        self.lines += made
        return made

    def touch(self, *mailboxes: str) -> set[str]:
        """A change in each of these mailboxes, or in all; the ids of what was changed."""
        lines = [line for mailbox in mailboxes or self.mailboxes for line in self.make(mailbox)]
        return {line.item_id or line.folder_id or "" for line in lines}

    def order(self, kind: str, **parameters: Any) -> list[Line]:
        """A fault, now."""
        return self.exchange.fault_scheduler.make_now(faults.parse({"kind": kind, **parameters}), clock())

    def books(self) -> Comparison:
        """What happened, held against what the handler was told."""
        ledger, _ = read_ledger(map(msgspec.json.encode, self.lines))
        return compare_in_detail(ledger, self.notes.calls, self.observer.gaps())

    async def caught_up(self, *, within: float) -> None:
        """Returns when each mailbox has been compared since now."""
        catch_up, started_at = self.daemon.catch_up, trio.current_time()
        catch_up.sweep()
        while behind := catch_up.lagging(started_at):
            assert trio.current_time() - started_at <= within, f"{behind} mailboxes after {within} s"
            await trio.sleep(0.5)

    def subscribes(self, since: float) -> int:
        """How many Subscribe requests there were since then."""
        return sum(moment >= since for moment, _, what in self.wire.asked if what == "Subscribe")

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]


@asynccontextmanager
async def world(
    settings: Settings, *, plan: Plan = (), traffic: float = 0.0, **sections: dict[str, Any]
) -> AsyncIterator[World]:
    """A daemon at work on such an organisation, with these sections of the configuration; it has ended in order
    when the context is left."""
    exchange = Exchange(settings, Ledger(None), clock())
    exchange.base_url = URL
    exchange.fault_scheduler.start_plan(plan, clock())
    wire = Wire(exchange)
    notes = Notes()
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
            nursery.start_soon(pulse, exchange, users, lines)
            async with (
                open_daemon(
                    config, [notes], open_journal=partial(open_journal, None), observer=observer
                ) as daemon,
                trio.open_nursery() as listening,
            ):
                listening.start_soon(daemon.run, stop)
                yield World(daemon, exchange, wire, notes, log, users, lines, observer)
                stop.set()
            nursery.cancel_scope.cancel()


def now() -> datetime:
    return datetime.fromtimestamp(clock(), UTC)


async def pulse(exchange: Exchange, traffic: Traffic, lines: list[Line]) -> None:
    """Let users do things, faults happen, and time pass."""
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
