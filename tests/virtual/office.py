"""Mailboxes of the simulator, a stream that keeps back what it is told to, and catching up behind it.

There is no socket and no supervisor: requests go to the simulator's Exchange, and events come straight from its
mailboxes.
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
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure
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


def told(event: Event) -> MailboxEvent:
    """The event as a stream tells it."""
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
    """States that live as long as the process."""

    def __init__(self, publish: Callable[[Sequence[MailboxEvent]], Awaitable[None]]) -> None:
        self._publish = publish
        self._kept: dict[str, dict[str, bytes]] = {}

    async def load(self, mailbox: str, /) -> Mapping[str, bytes]:
        return dict(self._kept.get(mailbox, {}))

    async def save(
        self, mailbox: str, events: Sequence[MailboxEvent], changes: Mapping[str, bytes | None], /
    ) -> None:
        if events:
            await self._publish(events)
        kept = self._kept.setdefault(mailbox, {})
        for key, value in changes.items():
            if value is None:
                kept.pop(key, None)
            else:
                kept[key] = value


@dataclass
class Office:
    """`handed` are the events that handlers got, and when; `asked` counts requests by operation. Failures in `fail`
    are the answers to the next requests of that operation."""

    exchange: Exchange
    kinds: frozenset[str]
    folders: tuple[str, ...] | None = None
    handed: list[tuple[float, MailboxEvent]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    fail: dict[str, list[Failure]] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    denied: list[tuple[str, Failure]] = field(default_factory=list)
    answers_without_stream: bool = False
    delay: float = 0.05
    streaming: bool = True
    # Seconds that the listener's clock is behind the server's.
    behind: float = 0.0
    log: list[Any] = field(default_factory=list)
    catch_up: CatchUp = field(init=False)
    states: MemoryStates = field(init=False)
    # Where a test wants to break in: called before each request with the operation.
    before: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.states = MemoryStates(self.publish)

    async def publish(self, events: Sequence[MailboxEvent]) -> None:
        self.handed += [(clock(), event) for event in events]

    def route(self, mailbox: str) -> MailboxRoute | None:
        return self._route(mailbox) if self.streaming else None

    def route_without_stream(self, mailbox: str) -> MailboxRoute | None:
        return self._route(mailbox) if self.answers_without_stream else None

    def renew(self, mailbox: str) -> None:
        self.silent.append(mailbox)

    def check_access(self, mailbox: str, failure: Failure) -> None:
        self.denied.append((mailbox, failure))

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
        self.asked[operation] += 1
        if self.before is not None:
            self.before(operation)
        await trio.sleep(self.delay)
        if self.fail.get(operation):
            raise ExchangeError(self.fail[operation].pop(0))
        lower = {name.lower(): value for name, value in headers.items()}
        request = HttpRequest("POST", "/EWS/Exchange.asmx", lower, body, self.exchange.settings.user)
        reply = self.exchange.handle(request, clock())
        reply.finish()
        assert isinstance(reply.body, bytes)
        if reply.status != 200:
            raise ExchangeError(http_failure(reply.status, {}, reply.body, self.now()))
        return read_it(reply.body)

    def now(self) -> datetime:
        return datetime.fromtimestamp(clock() - self.behind, UTC)

    @property
    def mailbox(self) -> Mailbox:
        return next(iter(self.exchange.directory))

    async def happen(self, events: Iterable[Event], *, lost: Callable[[Event], bool] | None = None) -> None:
        """Something happens in a mailbox. The stream tells of it, but for what is lost."""
        events = list(events)
        self.lines += self.exchange.publish(events)
        heard = [told(event) for event in events if lost is None or not lost(event)]
        if heard:
            await self.publish(heard)
            self.catch_up.note(heard)

    async def keep(self, events: Iterable[Event]) -> None:
        """Something happens, and the stream does not tell."""
        await self.happen(events, lost=lambda _event: True)

    def gap(self, since: float | None = None, reason: str = "lost") -> None:
        self.catch_up.gap(self.mailbox.address, since, reason)

    async def settle(self, seconds: float = 60.0) -> None:
        """Lets all that is under way come to its end."""
        await trio.sleep(seconds)

    def clear(self) -> None:
        self.handed.clear()
        self.lines.clear()
        self.asked.clear()

    @property
    def events(self) -> list[MailboxEvent]:
        """What handlers got, the listener's own apart."""
        return [event for _, event in self.handed if not is_own(event)]

    @property
    def recovered(self) -> list[MailboxEvent]:
        return [event for event in self.events if event.recovered]

    @property
    def told(self) -> list[tuple[str, str | None]]:
        """Type, without `exchange.`, and id of what was recovered."""
        return [(event.type.removeprefix("exchange."), event.subject) for event in self.recovered]

    @property
    def lifecycle(self) -> list[tuple[str, str | None]]:
        own = "exchange.listener."
        return [(e.type.removeprefix(own), e.reason) for _, e in self.handed if is_own(e)]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]

    def lost(self) -> list[LedgerLine]:
        """The changes of which no handler was told, nor of a later one of the same thing, but for what left no trace;
        a stream that loses things may do so at any time."""
        ledger, _ = read_ledger(map(msgspec.json.encode, self.lines))
        calls = [call_of(event, time) for time, event in self.handed if not is_own(event)]
        gaps = {mailbox.address: Gaps([(0.0, inf)]) for mailbox in self.exchange.directory}
        return compare_in_detail(ledger, calls, gaps).lost


def is_own(event: MailboxEvent) -> bool:
    """Whether the listener tells of itself."""
    return event.type.startswith("exchange.listener.")


@asynccontextmanager
async def office(
    *,
    kinds: frozenset[str] = KINDS,
    folders: tuple[str, ...] | None = None,
    mailboxes: int = 1,
    **settings: Any,
) -> AsyncIterator[Office]:
    """An office at work, nothing having happened yet."""
    exchange = Exchange(Settings(mailboxes=mailboxes, rate=0), Ledger(None), EPOCH - 86400)
    with structlog.testing.capture_logs() as log:
        one = Office(exchange, kinds, folders, log=log)
        one.catch_up = CatchUp(
            routes=one,
            states=one.states,
            kinds=one.kinds,
            now=one.now,
            rng=Random(1),
            **settings,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.catch_up.run)
            yield one
            nursery.cancel_scope.cancel()
        assert not one.logged("catchup.crashed")


@asynccontextmanager
async def ready(**settings: Any) -> AsyncIterator[Office]:
    """An office whose mailboxes have been compared once, and whose first states are there."""
    async with office(**settings) as one:
        for mailbox in one.exchange.directory:
            await one.happen(mailbox.deliver("first", "ben@example.org", clock()))
        await trio.sleep(400)  # long ago, whatever the clocks say
        for mailbox in one.exchange.directory:
            one.catch_up.gap(mailbox.address, None, "start")
        await one.settle()
        one.clear()
        yield one
