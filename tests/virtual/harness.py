"""A test harness for catch-up: simulated mailboxes, a stream that can hold events back, and a CatchUp.

There are no sockets and no group runners: requests go directly to the simulator's Exchange, and events come directly
from its mailboxes.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from random import Random
from typing import Any

import msgspec
import structlog.testing
import trio

from listener.access import AccessRule
from listener.catchup.catchup import CatchUp, MailboxRoute
from listener.demo.verdict import Gaps, LedgerLine, call_of, compare_in_detail, read_ledger
from listener.event import MailboxEvent
from listener.ews.codes import ExchangeError, Failure
from listener.ews.http import http_failure
from listener.ews.xml import read
from listener.simulator.exchange import Exchange
from listener.simulator.http import HttpRequest
from listener.simulator.ledger import Ledger, Line
from listener.simulator.mailstore import Event, Mailbox
from listener.simulator.settings import Settings
from tests.virtual.wire import EPOCH, clock

KINDS = frozenset(("copied", "created", "deleted", "modified", "moved", "new_mail", "free_busy_changed"))
WORDS = {
    "CopiedEvent": "copied",
    "CreatedEvent": "created",
    "DeletedEvent": "deleted",
    "ModifiedEvent": "modified",
    "MovedEvent": "moved",
    "NewMailEvent": "new_mail",
    "FreeBusyChangedEvent": "free_busy_changed",
}


def to_event(event: Event) -> MailboxEvent:
    """Return the event as a stream reports it."""
    is_item = event.item_id is not None
    return MailboxEvent(
        type=f"exchange.{'item' if is_item else 'folder'}.{WORDS[event.kind]}",
        mailbox=event.mailbox,
        time=f"{datetime.fromtimestamp(event.time, UTC):%Y-%m-%dT%H:%M:%SZ}",
        item_id=event.item_id,
        folder_id=event.folder_id,
        change_key=event.change_key,
        parent_folder_id=event.parent_folder_id,
        old_item_id=event.old_id if is_item else None,
        old_folder_id=None if is_item else event.old_id,
        old_parent_folder_id=event.old_parent_folder_id,
        unread_count=event.unread_count,
    )


class MemoryStates:
    """A StateStore in memory."""

    def __init__(self, publish: Callable[[Sequence[MailboxEvent]], Awaitable[None]]) -> None:
        self._publish = publish
        self._stored: dict[str, dict[str, bytes]] = {}

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]:
        return dict(self._stored.get(mailbox, {}))

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        if events:
            await self._publish(events)
        stored = self._stored.setdefault(mailbox, {})
        for key, value in changes.items():
            if value is None:
                stored.pop(key, None)
            else:
                stored[key] = value


@dataclass
class CatchUpHarness:
    """A CatchUp, its routes and the simulated Exchange.

    `published`: the events that handlers received, and when. `requests`: their number by operation. `failures`: the
    answers to the next requests of an operation. `renewed`: mailboxes whose subscriptions catch-up renewed.
    `access_checks`: mailboxes whose access it had checked. `clock_lag`: seconds that the listener's clock is behind
    the server's. `before_request`: called with the operation before each request.
    """

    exchange: Exchange
    kinds: frozenset[str]
    folders: tuple[str, ...] | None = None
    published: list[tuple[float, MailboxEvent]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    renewed: list[str] = field(default_factory=list)
    access_checks: list[tuple[str, Failure]] = field(default_factory=list)
    answers_without_stream: bool = False
    delay: float = 0.05
    streaming: bool = True
    clock_lag: float = 0.0
    log: list[Any] = field(default_factory=list)
    catch_up: CatchUp = field(init=False)
    states: MemoryStates = field(init=False)
    before_request: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.states = MemoryStates(self.publish)

    async def publish(self, events: Sequence[MailboxEvent]) -> None:
        self.published += [(clock(), event) for event in events]

    def route(self, mailbox: str) -> MailboxRoute | None:
        return self._route(mailbox) if self.streaming else None

    def route_without_stream(self, mailbox: str) -> MailboxRoute | None:
        return self._route(mailbox) if self.answers_without_stream else None

    def renew(self, mailbox: str) -> None:
        self.renewed.append(mailbox)

    def check_access(self, mailbox: str, failure: Failure) -> None:
        self.access_checks.append((mailbox, failure))

    def _route(self, mailbox: str) -> MailboxRoute:
        access = AccessRule(folders=self.folders).of(mailbox)
        return MailboxRoute(
            client=self,
            headers={"X-AnchorMailbox": mailbox},
            version="Exchange2013_SP1",
            access=access,
            server_offset=EPOCH,
        )

    async def call(self, body: bytes, headers: Mapping[str, str], read_it: Callable[[bytes], Any]) -> Any:
        operation = read(body)[1][0].tag.rpartition("}")[2]
        self.requests[operation] += 1
        if self.before_request is not None:
            self.before_request(operation)
        await trio.sleep(self.delay)
        if self.failures.get(operation):
            raise ExchangeError(self.failures[operation].pop(0))
        lower = {name.lower(): value for name, value in headers.items()}
        request = HttpRequest("POST", "/EWS/Exchange.asmx", lower, body, self.exchange.settings.user)
        reply = self.exchange.handle(request, clock())
        reply.finish()
        assert isinstance(reply.body, bytes)
        if reply.status != 200:
            raise ExchangeError(http_failure(reply.status, {}, reply.body, self.now()))
        return read_it(reply.body)

    def now(self) -> datetime:
        return datetime.fromtimestamp(clock() - self.clock_lag, UTC)

    @property
    def mailbox(self) -> Mailbox:
        return next(iter(self.exchange.directory))

    async def report(
        self, events: Iterable[Event], *, withheld: Callable[[Event], bool] | None = None
    ) -> None:
        """Let changes happen that the stream reports, except those that are `withheld`."""
        events = list(events)
        self.lines += self.exchange.publish(events)
        streamed = [to_event(event) for event in events if withheld is None or not withheld(event)]
        if streamed:
            await self.publish(streamed)
            self.catch_up.note(streamed)

    async def hold_back(self, events: Iterable[Event]) -> None:
        """Let changes happen that the stream does not report."""
        await self.report(events, withheld=lambda _event: True)

    def gap(self, since: float | None = None, reason: str = "lost") -> None:
        self.catch_up.gap(self.mailbox.address, since, reason)

    async def settle(self, seconds: float = 60.0) -> None:
        """Wait until running work is complete."""
        await trio.sleep(seconds)

    def clear(self) -> None:
        self.published.clear()
        self.lines.clear()
        self.requests.clear()

    @property
    def events(self) -> list[MailboxEvent]:
        """The events that handlers received, without the listener's own."""
        return [event for _, event in self.published if not is_own(event)]

    @property
    def recovered(self) -> list[MailboxEvent]:
        return [event for event in self.events if event.recovered]

    @property
    def recovered_changes(self) -> list[tuple[str, str | None]]:
        """Type (without `exchange.`) and id of each recovered event."""
        return [(event.type.removeprefix("exchange."), event.subject) for event in self.recovered]

    @property
    def listener_events(self) -> list[tuple[str, str | None]]:
        prefix = "exchange.listener."
        return [(e.type.removeprefix(prefix), e.reason) for _, e in self.published if is_own(e)]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]

    def lost(self) -> list[LedgerLine]:
        """Return the changes that were not reported, and after which no later change of the same thing was.

        Things that were created and deleted within a gap do not count. The stream may lose events at any time.
        """
        ledger, _ = read_ledger(map(msgspec.json.encode, self.lines))
        calls = [call_of(event, time) for time, event in self.published if not is_own(event)]
        gaps = {mailbox.address: Gaps([(0.0, inf)]) for mailbox in self.exchange.directory}
        return compare_in_detail(ledger, calls, gaps).lost


def is_own(event: MailboxEvent) -> bool:
    """Return whether the event is about the listener itself."""
    return event.type.startswith("exchange.listener.")


@asynccontextmanager
async def open_harness(
    *,
    kinds: frozenset[str] = KINDS,
    folders: tuple[str, ...] | None = None,
    mailboxes: int = 1,
    **settings: Any,
) -> AsyncIterator[CatchUpHarness]:
    """Run a harness in which nothing has happened yet."""
    exchange = Exchange(Settings(mailboxes=mailboxes, rate=0), Ledger(None), EPOCH - 86400)
    with structlog.testing.capture_logs() as log:
        harness = CatchUpHarness(exchange, kinds, folders, log=log)
        harness.catch_up = CatchUp(
            routes=harness,
            states=harness.states,
            kinds=harness.kinds,
            now=harness.now,
            rng=Random(1),
            **settings,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.catch_up.run)
            yield harness
            nursery.cancel_scope.cancel()
        assert not harness.logged("catchup.crashed")


@asynccontextmanager
async def ready_harness(**settings: Any) -> AsyncIterator[CatchUpHarness]:
    """Run a harness whose mailboxes have been compared once and have their first SyncStates."""
    async with open_harness(**settings) as harness:
        for mailbox in harness.exchange.directory:
            await harness.report(mailbox.deliver("first", "ben@example.org", clock()))
        await trio.sleep(400)  # long ago, even if the clocks differ
        for mailbox in harness.exchange.directory:
            harness.catch_up.gap(mailbox.address, None, "start")
        await harness.settle()
        harness.clear()
        yield harness
