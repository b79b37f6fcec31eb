"""Performs what the state machine of a group asks for. One task a group, one task an action.

Events leave through `publish`, a batch a chunk.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2s
from math import inf
from typing import Protocol

import structlog
import trio

from listener.access import AccessRules
from listener.catchup.inquiry import Way
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure
from listener.ews.events import EventKind, Notification, mailbox_event
from listener.ews.stream import Signal
from listener.ews.subscription import (
    get_streaming_events,
    read_subscribe,
    read_unsubscribe,
    subscribe,
    unsubscribe,
)
from listener.ews.xml import excerpt
from listener.exchange.client import ExchangeClient
from listener.groups.actions import (
    Action,
    Discover,
    Discovered,
    Outcome,
    Separate,
    Separated,
    Stop,
    Stream,
    StreamEnded,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Wait,
    Waited,
)
from listener.groups.affinity import Group
from listener.groups.gaps import Gaps
from listener.groups.group import GroupState, advance
from listener.groups.reader import StreamReader
from listener.groups.saved import Held, SavedGroup
from listener.groups.transitions import lifecycle_events, tell_transition

log = structlog.get_logger()


class Registry(Protocol):
    """Knows all groups, and moves mailboxes between them (listener/groups/roster.py does)."""

    async def seek(self, group: Group, mailboxes: Sequence[str], /) -> Discovered: ...
    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None: ...
    def resumed(self, mailboxes: Sequence[str], /) -> None: ...
    def claim(self, group: Group, subscription: str, mailbox: str, /) -> None: ...
    def release(self, group: Group, subscription: str, mailbox: str, /) -> None: ...
    def owner(self, group: Group, subscription: str, /) -> str | None: ...
    def separate(self, group: Group, mailboxes: Sequence[str], /) -> None: ...
    def changed(self, group: Group, /) -> None: ...
    def events_dropped(self, count: int, /) -> None: ...
    async def keep(self, group: Group, /) -> None: ...


Publish = Callable[[Sequence[MailboxEvent]], Awaitable[None]]
Message = tuple[Action | None, "Task | None", Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of Exchange, the same for all groups. `silence` is in seconds, `window` in minutes.

    `directory` is what mailboxes are found by: places that something else had told are not to be relied on.
    """

    version: str
    access: AccessRules
    events: tuple[EventKind, ...]
    impersonate_anchor_on_stream: bool = True
    window: int = 30
    silence: float = 90.0
    max_envelope: int = 16 * 1024 * 1024
    subscribe_concurrency: int = 5
    unsubscribe_patience: float = 5.0
    # A stream that was replaced is read until the server ends it, so that nothing on its way is lost.
    drain: float = 30.0
    directory: str = ""

    def maker(self, account: str) -> str:
        """A fingerprint of who made a subscription: only the same may use it again."""
        return _fingerprint(account, self.directory)

    def of(self, mailbox: str) -> str:
        """A fingerprint of what a mailbox is subscribed for: a subscription does for the same only."""
        return _fingerprint(self.access.of(mailbox), sorted(self.events))


@dataclass(slots=True)
class GroupRunner:
    """One group at work. `state` is for whoever watches; tell() hands in an outcome from outside.

    `well` has when the stream of each mailbox was last heard; what is older than `begun`, an earlier process heard.
    """

    group: Group
    client: ExchangeClient
    wish: Wish
    publish: Publish
    registry: Registry
    state: GroupState
    dice: random.Random = field(default_factory=random.Random)
    well: dict[str, float] = field(default_factory=dict)
    begun: float = -inf
    streaming: bool = False  # the server has been heard on the newest stream
    events: int = 0
    since: float = field(init=False, default_factory=trio.current_time)  # of what it does, in one word
    opened: float | None = None  # when the server was first heard on the newest stream
    finished: bool = False
    _streamed: Stream | None = None
    _reader: StreamReader | None = None
    _readers: set[StreamReader] = field(init=False, default_factory=set)  # at work, wanted or not
    _end_by: float = inf
    _telling: trio.CancelScope = field(init=False, default_factory=trio.CancelScope)
    _fresh: dict[str, str] = field(init=False, default_factory=dict)  # made by the Subscribe under way
    _wishes: dict[str, str] = field(init=False, default_factory=dict)  # what each was subscribed for
    _gaps: Gaps = field(init=False)
    _impersonating: bool = field(init=False)
    _running: dict[Action, Task] = field(init=False, default_factory=dict)
    _mail: trio.MemorySendChannel[Message] = field(init=False)
    _inbox: trio.MemoryReceiveChannel[Message] = field(init=False)
    _log: structlog.typing.FilteringBoundLogger = field(init=False)

    def __post_init__(self) -> None:
        # As many outcomes as there are tasks and tellers: bounded by these, and nobody may wait here.
        self._mail, self._inbox = trio.open_memory_channel[Message](inf)
        self._log = log.bind(group=self.group.name)
        self._impersonating = self.wish.impersonate_anchor_on_stream
        self._gaps = Gaps(self.well, self.begun)
        for mailbox, _ in self.state.live:
            self._gaps.subscribed(mailbox, self.begun)
            self._wishes[mailbox] = self.wish.of(mailbox)

    async def run(self) -> None:
        """Keeps the group alive until it has been told to stop and has done so."""
        self._log.info("group.started", mailboxes=len(self.state.members), anchor=self.state.anchor)
        async with self.client, trio.open_nursery() as nursery:
            while self._arrange(nursery) or self._inbox.statistics().current_buffer_used:
                action, task, outcome = await self._inbox.receive()
                if action is not None:
                    if self._running.get(action) is not task:
                        continue  # it had been replaced before it ended
                    del self._running[action]
                before = self.state
                self.state = advance(before, outcome, trio.current_time(), self.dice.random())
                if self.state.phase != before.phase:
                    self.since = trio.current_time()
                for mailbox, id_ in set(self.state.abandoned).difference(before.abandoned):
                    self.registry.release(self.group, id_, mailbox)
                if isinstance(outcome, Subscribed):
                    self._fresh.clear()
                if before.members is not self.state.members or before.anchor != self.state.anchor:
                    self.registry.changed(self.group)
                tell_transition(self._log, before, self.state, outcome, trio.current_time())
                if told := lifecycle_events(before, self.state, datetime.now(UTC)):
                    with trio.CancelScope(deadline=self._end_by) as self._telling:
                        await self.publish(told)
            self.finished = True
            # What was read is handed on, as long as the journal takes it.
            for reader in self._readers:
                reader.end_within(0)
            nursery.cancel_scope.deadline = min(self._end_by, trio.current_time() + HANDING_ON)
        self._log.info("group.stopped")

    @property
    def mailboxes_streaming(self) -> int:
        """How many mailboxes have an open stream that the server has been heard on."""
        return len(self.state.stream.subscriptions) if self.streaming and self.state.stream else 0

    @property
    def heard_at(self) -> float | None:
        """When a stream of this group was last heard."""
        return None if self._reader is None else self._reader.well

    def behind(self) -> dict[str, float]:
        """The mailboxes of which something may be missing from before heard_at, and from when on."""
        moments = (
            (m.mailbox, self._gaps.behind(m.mailbox, streams=m.subscription is not None))
            for m in self.state.members
        )
        return {mailbox: moment for mailbox, moment in moments if moment is not None}

    def record(self) -> SavedGroup:
        """What the next process needs to go on with this group."""
        ids = dict(self.state.live) | self._fresh
        mailboxes = [member.mailbox for member in self.state.members]
        return SavedGroup(
            name=self.group.name,
            ews_url=self.group.ews_url,
            grouping_information=self.group.grouping_information,
            access=self.group.access,
            closed=self.group.closed,
            anchor=self.state.anchor,
            maker=self.wish.maker(self.client.account),
            members={m: Held(ids[m], self._wishes[m]) if m in ids else None for m in mailboxes},
            cookies=self.client.cookies,
        )

    def tell(self, outcome: Outcome) -> None:
        """Hands in what happened outside: Joined, Doubted, Stop."""
        if isinstance(outcome, Stop):
            # A journal that takes nothing more must not keep us from hearing it.
            self._end_by = self._telling.deadline = trio.current_time() + HANDING_ON
        self._mail.send_nowait((None, None, outcome))

    def _arrange(self, nursery: trio.Nursery) -> bool:
        """Makes what is going on what the state wants; False when nothing is left to do."""
        wanted = self.state.actions
        for action in [a for a in self._running if a not in wanted]:
            task = self._running.pop(action)
            if task.reader is not None:
                task.reader.end_within(0 if self.state.stopping else self.wish.drain)
            else:
                task.scope.cancel()
        for action in wanted:
            if action not in self._running:
                self._running[action] = task = self._new_task(action)
                nursery.start_soon(self._perform, action, task)
        if self.state.stream is None:
            self.streaming, self.opened = False, None
        return bool(wanted)

    def _new_task(self, action: Action) -> Task:
        match action:
            case Stream():
                return Task(
                    reader=StreamReader(silence=self.wish.silence, max_envelope=self.wish.max_envelope)
                )
            case Unsubscribe():
                # Its cookies lead to where these subscriptions are; the group may be about to forget them.
                return Task(client=self.client.twin())
        return Task()

    async def _perform(self, action: Action, task: Task) -> None:
        outcome: Outcome
        with task.scope:
            match action:
                case Subscribe():
                    outcome = await self._subscribe(action)
                case Stream():
                    assert task.reader is not None
                    outcome = await self._stream(action, task.reader)
                case Wait():
                    outcome = await self._wait(action)
                case Unsubscribe():
                    assert task.client is not None
                    await self._unsubscribe(action, task.client)
                    outcome = Unsubscribed()
                case Discover(mailboxes):
                    outcome = await self.registry.seek(self.group, mailboxes)
                case Separate(mailboxes):
                    self.registry.separate(self.group, mailboxes)
                    outcome = Separated(mailboxes)
            await self._mail.send((action, task, outcome))

    async def _wait(self, action: Wait) -> Waited:
        with trio.CancelScope(deadline=action.until):
            if not action.eager:
                await trio.sleep_forever()
            await self.client.budget.wait_heard()
            # Not all at the same moment.
            await trio.sleep(self.dice.uniform(0, ENCOURAGED))
            return Waited(early=True)
        return Waited()

    # --- Subscribe and Unsubscribe

    def _headers(self, anchor: str) -> dict[str, str]:
        return {"X-AnchorMailbox": anchor, "X-PreferServerAffinity": "true"}

    async def _subscribe(self, action: Subscribe) -> Subscribed:
        ids: list[tuple[str, str]] = []
        refused: list[tuple[str, Failure]] = []
        todo = list(reversed(action.mailboxes))

        async def one(mailbox: str) -> None:
            access, wish = self.wish.access.of(mailbox), self.wish.of(mailbox)
            body = subscribe(
                version=self.wish.version,
                impersonate=access.impersonate,
                events=self.wish.events,
                folders=access.folders,
            )
            try:
                id_ = await self.client.call(body, self._headers(action.anchor), read_subscribe)
            except ExchangeError as error:
                refused.append((mailbox, error.failure))
            else:
                ids.append((mailbox, id_))
                self._gaps.subscribed(mailbox, trio.current_time())
                self._fresh[mailbox], self._wishes[mailbox] = id_, wish
                self.registry.claim(self.group, id_, mailbox)
                self.registry.changed(self.group)
                self._log.debug("mailbox.subscribed", mailbox=mailbox, subscription_id=id_)

        async def worker() -> None:
            # Once the server asks for a pause, the rest is left untried: the group comes back to it afterwards.
            while todo and not any(failure.wait for _, failure in refused):
                await one(todo.pop())

        if action.afresh:
            self.client.forget_cookies()
            # The anchor's answer sets the cookie that brings the others to the same back end.
            await one(todo.pop())
            if not ids:
                return Subscribed((), tuple(refused))
        async with trio.open_nursery() as nursery:
            for _ in range(min(self.wish.subscribe_concurrency, len(todo))):
                nursery.start_soon(worker)
        # Whoever comes after a crash must know who was listened to.
        await self.registry.keep(self.group)
        return Subscribed(tuple(ids), tuple(refused))

    async def _unsubscribe(self, action: Unsubscribe, client: ExchangeClient) -> None:
        """Within seconds at the end; else one after another, because nobody is waiting for it."""
        todo = list(action.subscriptions)
        hurry = self.state.stopping

        async def worker() -> None:
            while todo:
                mailbox, id_ = todo.pop()
                if self.registry.owner(self.group, id_) is not None and not hurry:
                    continue  # a server that began anew has given this id to somebody else
                access = self.wish.access.of(mailbox)
                body = unsubscribe(id_, version=self.wish.version, impersonate=access.impersonate)
                try:
                    await client.call(body, self._headers(action.anchor), read_unsubscribe)
                except ExchangeError as error:
                    # It dies by itself when nobody reads it: not worth holding up the end.
                    self._log.debug("mailbox.unsubscribe_failed", mailbox=mailbox, code=error.failure.code)

        with trio.move_on_after(self.wish.unsubscribe_patience if hurry else inf):
            async with client, trio.open_nursery() as nursery:
                for _ in range(min(self.wish.subscribe_concurrency if hurry else 1, len(todo))):
                    nursery.start_soon(worker)

    # --- the stream

    async def _stream(self, action: Stream, reader: StreamReader) -> StreamEnded:
        begun = trio.current_time()
        mailboxes = [mailbox for mailbox, _ in action.subscriptions]
        since = self._gaps.known(mailboxes)
        self._readers.add(reader)
        try:
            failures = await self._read(action, reader)
        finally:
            self._readers.remove(reader)
            if reader.well is not None:
                self._gaps.heard(mailboxes, reader.well)
                since = dict.fromkeys(mailboxes, reader.well)
        if failures and self._streamed is action:
            self._streamed = None
        # The next process takes it for granted that something is missing since the newest stream was last heard.
        cut = reader.cut and not (self.state.stopping and reader is self._reader)
        lossy = self._gaps.ended(mailboxes, failures, cut=cut, since=since)
        if lossy and not self._is_newest(action, reader):
            self._tell_gaps()  # another stream has taken over; else the next one is opened first
        return StreamEnded(trio.current_time() - begun, failures, reader.heard)

    async def _read(self, action: Stream, reader: StreamReader) -> tuple[Failure, ...]:
        owners = {id_: mailbox for mailbox, id_ in action.subscriptions}
        impersonating = self._impersonating
        body = get_streaming_events(
            tuple(owners),
            minutes=self.wish.window,
            version=self.wish.version,
            impersonate=self.wish.access.of(action.anchor).impersonate if impersonating else None,
        )

        async def take(signals: Sequence[Signal]) -> None:
            if reader.heard and signals and self._is_newest(action, reader):
                self._reader = reader
                self._heard(action)
            await self._publish(signals, owners)
            for signal in signals:
                if isinstance(signal, Failure):
                    self.client.budget.failed(signal)

        failures = await reader.read(
            lambda: self.client.open_stream(body, self._headers(action.anchor)), take
        )
        if not impersonating and any(f.code == "ErrorExceededConnectionCount" for f in failures):
            # A stream in a mailbox's name is charged to its budget, not to that of the account.
            self._impersonating = True
            self._log.warning("stream.impersonating", code="ErrorExceededConnectionCount")
        return failures

    def _is_newest(self, action: Stream, reader: StreamReader) -> bool:
        """Whether no other stream has taken this one's place."""
        task = self._running.get(action)
        return task is not None and task.reader is reader

    async def _publish(self, signals: Sequence[Signal], owners: dict[str, str]) -> None:
        batch: list[MailboxEvent] = []
        arrived = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        for signal in signals:
            if isinstance(signal, Notification):
                id_ = signal.subscription_id
                mailbox = self.registry.owner(self.group, id_) or owners.get(id_)
                if signal.dropped or not id_:
                    self._drop_events(signal, owners.values() if mailbox is None else (mailbox,))
                if mailbox is None and not id_:
                    continue
                if mailbox is None:
                    self._log.warning("stream.foreign_notification", subscription_id=excerpt(id_))
                else:
                    batch += [mailbox_event(mailbox, event, arrived) for event in signal.events]
        if batch:
            self.events += len(batch)
            # One envelope can hold tens of thousands: others must come in between.
            for start in range(0, len(batch), MOST_AT_ONCE):
                await self.publish(batch[start : start + MOST_AT_ONCE])

    def _drop_events(self, notification: Notification, mailboxes: Iterable[str]) -> None:
        """Count events that lack an id, and have the mailboxes compared that they may be about."""
        count = notification.dropped + (0 if notification.subscription_id else len(notification.events))
        among = sorted(set(mailboxes))
        mailbox = among[0] if len(among) == 1 else None
        self._log.warning("stream.events_dropped", events=count, mailbox=mailbox, mailboxes=len(among))
        self.registry.events_dropped(count)
        for each in among:
            self.registry.gap(each, trio.current_time(), WITHOUT_ID)

    def _heard(self, action: Stream) -> None:
        if not self.streaming or self._streamed is not action:
            before = self._streamed if self.streaming else None
            self.streaming, self._streamed, self.opened = True, action, trio.current_time()
            self.client.budget.heard()
            # A stream is opened anew every half hour: that is no news.
            news = before is None or before.subscriptions != action.subscriptions
            tell = self._log.info if news else self._log.debug
            tell("group.streaming", mailboxes=len(action.subscriptions), anchor=action.anchor)
            self.registry.changed(self.group)  # its cookies may have
            self.registry.resumed([mailbox for mailbox, _ in action.subscriptions])
            self._tell_gaps()

    def _tell_gaps(self) -> None:
        """The gaps of those that have a stream again are ready to be filled."""
        if self.streaming and self._streamed:
            for gap in self._gaps.close(mailbox for mailbox, _ in self._streamed.subscriptions):
                self.registry.gap(*gap)

    def way(self, mailbox: str) -> Way | None:
        """How to ask about a mailbox of this group; None while it has no stream."""
        if not self.streaming or self.state.subscription_of(mailbox) is None:
            return None
        headers = self._headers(self.state.anchor)
        access = self.wish.access.of(mailbox)
        return Way(client=self.client, headers=headers, version=self.wish.version, access=access)


@dataclass(eq=False, slots=True)
class Task:
    """One action at work; a Stream has a reader, an Unsubscribe a client of its own."""

    reader: StreamReader | None = None
    client: ExchangeClient | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


def _fingerprint(*what: object) -> str:
    return blake2s(repr(what).encode(), digest_size=8).hexdigest()


# Events that are handed on together.
MOST_AT_ONCE = 250

# Why a mailbox has a gap of which an event lacked its id.
WITHOUT_ID = "EventWithoutId"

# Seconds at the end of a group in which the journal may take what was read.
HANDING_ON = 3.0

# Seconds over which the groups come back that had waited until the server was heard.
ENCOURAGED = 3.0
