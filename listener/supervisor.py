"""Performs what the state machine of a group asks for, and tells the log what became of it.

One task a group, one task an action. Events leave through `publish`, a batch a chunk.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Protocol

import structlog
import trio

from listener.affinity import Group
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure
from listener.ews.events import EventKind, Notification, mailbox_event
from listener.ews.soap import Impersonation, ImpersonationKind
from listener.ews.stream import Closed, Signal, StreamParser
from listener.ews.subscription import (
    FolderRef,
    get_streaming_events,
    read_subscribe,
    read_unsubscribe,
    subscribe,
    unsubscribe,
)
from listener.exchange.client import ExchangeClient
from listener.group import (
    Action,
    Discover,
    Discovered,
    GroupState,
    Member,
    Outcome,
    Separate,
    Separated,
    Stream,
    StreamEnded,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Wait,
    Waited,
    advance,
)
from listener.reconcile import Way

log = structlog.get_logger()


class Registry(Protocol):
    """Knows all groups, and moves mailboxes between them (listener/roster.py does)."""

    async def seek(self, group: Group, mailboxes: Sequence[str], /) -> Discovered: ...
    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None: ...
    def resumed(self, mailboxes: Sequence[str], /) -> None: ...
    def claim(self, group: Group, subscription: str, mailbox: str, /) -> None: ...
    def owner(self, group: Group, subscription: str, /) -> str | None: ...
    def separate(self, group: Group, mailboxes: Sequence[str], /) -> None: ...


Publish = Callable[[Sequence[MailboxEvent]], Awaitable[None]]
Message = tuple[Action | None, "Task | None", Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of Exchange, the same for all groups. `silence` is in seconds, `window` in minutes."""

    version: str
    impersonate_by: ImpersonationKind
    folders: tuple[FolderRef, ...] | None
    events: tuple[EventKind, ...]
    impersonate_anchor_on_stream: bool = True
    window: int = 30
    silence: float = 90.0
    max_envelope: int = 16 * 1024 * 1024
    subscribe_concurrency: int = 5
    unsubscribe_patience: float = 5.0
    # A stream that was replaced is read until the server ends it, so that nothing on its way is lost.
    drain: float = 30.0


@dataclass(slots=True)
class GroupRunner:
    """One group at work. `state` is for whoever watches; tell() hands in an outcome from outside."""

    group: Group
    client: ExchangeClient
    wish: Wish
    publish: Publish
    registry: Registry
    state: GroupState
    dice: random.Random = field(default_factory=random.Random)
    streaming: bool = False  # the server has been heard on the newest stream
    events: int = 0
    finished: bool = False
    _streamed: Stream | None = None
    # By mailbox: when its stream was last heard.
    _well: dict[str, float] = field(init=False, default_factory=dict)
    _gaps: dict[str, tuple[float | None, str]] = field(init=False, default_factory=dict)
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

    async def run(self) -> None:
        """Keeps the group alive until it has been told to stop and has done so."""
        self._log.info("group.started", mailboxes=len(self.state.members), anchor=self.state.anchor)
        async with self.client, trio.open_nursery() as nursery:
            while self._arrange(nursery):
                action, task, outcome = await self._inbox.receive()
                if action is not None:
                    if self._running.get(action) is not task:
                        continue  # it had been replaced before it ended
                    del self._running[action]
                before = self.state
                self.state = advance(before, outcome, trio.current_time(), self.dice.random())
                self._note_gaps(before, self.state)
                self._tell_transition(before, self.state, outcome)
                await self._tell_handlers(before, self.state)
            self.finished = True
            nursery.cancel_scope.cancel()
        self._log.info("group.stopped")

    @property
    def mailboxes_streaming(self) -> int:
        """How many mailboxes have an open stream that the server has been heard on."""
        return len(self.state.stream.subscriptions) if self.streaming and self.state.stream else 0

    def tell(self, outcome: Outcome) -> None:
        """Hands in what happened outside: Joined, Doubted, Stop."""
        self._mail.send_nowait((None, None, outcome))

    def _arrange(self, nursery: trio.Nursery) -> bool:
        """Makes what is going on what the state wants; False when nothing is left to do."""
        wanted = self.state.actions
        for action in [a for a in self._running if a not in wanted]:
            task = self._running.pop(action)
            if isinstance(action, Stream) and not self.state.stopping:
                task.end_within(self.wish.drain)
            else:
                task.end()
        for action in wanted:
            if action not in self._running:
                self._running[action] = task = Task()
                nursery.start_soon(self._perform, action, task)
        if self.state.stream is None:
            self.streaming = False
        return bool(wanted)

    async def _perform(self, action: Action, task: Task) -> None:
        outcome: Outcome
        with task.scope:
            match action:
                case Subscribe():
                    outcome = await self._subscribe(action)
                case Stream():
                    outcome = await self._stream(action, task)
                case Wait():
                    outcome = await self._wait(action)
                case Unsubscribe():
                    await self._unsubscribe(action)
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

    def _acting_as(self, mailbox: str) -> Impersonation:
        return Impersonation(kind=self.wish.impersonate_by, value=mailbox)

    async def _subscribe(self, action: Subscribe) -> Subscribed:
        ids: list[tuple[str, str]] = []
        refused: list[tuple[str, Failure]] = []
        todo = list(reversed(action.mailboxes))

        async def one(mailbox: str) -> None:
            body = subscribe(
                version=self.wish.version,
                impersonate=self._acting_as(mailbox),
                events=self.wish.events,
                folders=self.wish.folders,
            )
            try:
                id_ = await self.client.call(body, self._headers(action.anchor), read_subscribe)
            except ExchangeError as error:
                refused.append((mailbox, error.failure))
            else:
                ids.append((mailbox, id_))
                self.registry.claim(self.group, id_, mailbox)
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
        return Subscribed(tuple(ids), tuple(refused))

    async def _unsubscribe(self, action: Unsubscribe) -> None:
        todo = list(action.subscriptions)

        async def worker() -> None:
            while todo:
                mailbox, id_ = todo.pop()
                body = unsubscribe(id_, version=self.wish.version, impersonate=self._acting_as(mailbox))
                try:
                    await self.client.call(body, self._headers(action.anchor), read_unsubscribe)
                except ExchangeError as error:
                    # It dies by itself when nobody reads it: not worth holding up the end.
                    self._log.debug("mailbox.unsubscribe_failed", mailbox=mailbox, code=error.failure.code)

        with trio.move_on_after(self.wish.unsubscribe_patience):
            async with trio.open_nursery() as nursery:
                for _ in range(min(self.wish.subscribe_concurrency, len(todo))):
                    nursery.start_soon(worker)

    # --- the stream

    async def _stream(self, action: Stream, task: Task) -> StreamEnded:
        begun = trio.current_time()
        try:
            failures = await self._read_stream(action, task)
        finally:
            if task.well is not None:
                self._well |= dict.fromkeys((mailbox for mailbox, _ in action.subscriptions), task.well)
        lossy = [failure.code for failure in failures if failure.code in LOSSY]
        if task.cut:
            lossy.append("replaced")
        if lossy:
            for mailbox, _ in action.subscriptions:
                self._open_gap(mailbox, lossy[0])
            if self._running.get(action) is not task:
                self._tell_gaps()  # another stream has taken over; else the next one is opened first
        return StreamEnded(trio.current_time() - begun, failures, task.heard)

    async def _read_stream(self, action: Stream, task: Task) -> tuple[Failure, ...]:
        owners = {id_: mailbox for mailbox, id_ in action.subscriptions}
        anchor = self._acting_as(action.anchor) if self._impersonating else None
        body = get_streaming_events(
            tuple(owners), minutes=self.wish.window, version=self.wish.version, impersonate=anchor
        )
        parser = StreamParser(max_envelope=self.wish.max_envelope)
        closed, quiet = False, 0.0
        try:
            async with aclosing(await self.client.open_stream(body, self._headers(action.anchor))) as answer:
                while True:
                    # Armed only while bytes are awaited: a slow handler must not look like a silent server. And
                    # only what makes sense counts as heard: bytes that trickle in are as good as none.
                    begun = trio.current_time()
                    with task.patience((AFTER_CLOSED if closed else self.wish.silence) - quiet) as patience:
                        data = await answer.receive()
                    quiet += trio.current_time() - begun
                    if patience.cancelled_caught:
                        task.cut = task.ending and not closed
                        return () if closed or task.ending else (self._silent(),)
                    signals = parser.feed(data) if data else parser.end()
                    if signals:
                        quiet, task.well = 0.0, trio.current_time()
                        task.heard = task.heard or not isinstance(signals[0], Failure)
                        if task.heard and self._running.get(action) is task:
                            self._heard(action)
                    await self._publish(signals, owners)
                    failures = tuple(signal for signal in signals if isinstance(signal, Failure))
                    closed = closed or any(isinstance(signal, Closed) for signal in signals)
                    for failure in failures:
                        self.client.budget.failed(failure)
                    if failures or not data:
                        return failures
        except ExchangeError as error:
            if error.failure.code == "ErrorExceededConnectionCount" and not self._impersonating:
                # A stream in a mailbox's name is charged to its budget, not to that of the account.
                self._impersonating = True
                self._log.warning("stream.impersonating", code=error.failure.code)
            return () if closed else (error.failure,)

    async def _publish(self, signals: Sequence[Signal], owners: dict[str, str]) -> None:
        batch: list[MailboxEvent] = []
        for signal in signals:
            if isinstance(signal, Notification):
                id_ = signal.subscription_id
                mailbox = self.registry.owner(self.group, id_) or owners.get(id_)
                if mailbox is None:
                    self._log.warning("stream.foreign_notification", subscription_id=signal.subscription_id)
                else:
                    batch += [mailbox_event(mailbox, event) for event in signal.events]
        if batch:
            self.events += len(batch)
            await self.publish(batch)

    def _heard(self, action: Stream) -> None:
        if not self.streaming or self._streamed is not action:
            self.streaming, self._streamed = True, action
            self.client.budget.heard()
            self._log.info("group.streaming", mailboxes=len(action.subscriptions), anchor=action.anchor)
            self.registry.resumed([mailbox for mailbox, _ in action.subscriptions])
            self._tell_gaps()

    def _silent(self) -> Failure:
        return Failure(code="StreamSilent", text=f"nothing heard for {self.wish.silence:g} s")

    # --- gaps

    def _note_gaps(self, before: GroupState, after: GroupState) -> None:
        """A subscription that is new knows nothing of what was before it."""
        for old, new in pairs(before.members, after.members):
            if new.subscription is not None and new.subscription != old.subscription:
                self._open_gap(new.mailbox, "lost" if new.mailbox in self._well else "start")

    def _open_gap(self, mailbox: str, reason: str) -> None:
        self._gaps.setdefault(mailbox, (self._well.get(mailbox), reason))

    def _tell_gaps(self) -> None:
        """The gaps of those that have a stream again are ready to be filled."""
        if not (self.streaming and self._streamed):
            return
        for mailbox, _ in self._streamed.subscriptions:
            if (gap := self._gaps.pop(mailbox, None)) is not None:
                self.registry.gap(mailbox, *gap)

    def way(self, mailbox: str) -> Way | None:
        """How to ask about a mailbox of this group; None while it has no stream."""
        if not self.streaming or all(mailbox != streamed for streamed, _ in self.state.live):
            return None
        headers = self._headers(self.state.anchor)
        acting = self._acting_as(mailbox)
        return Way(client=self.client, headers=headers, version=self.wish.version, impersonate=acting)

    # --- what handlers and the log are told

    async def _tell_handlers(self, before: GroupState, after: GroupState) -> None:
        told = []
        for old, new in pairs(before.members, after.members):
            if old.parked != new.parked:
                kind = "parked" if new.parked else "unparked"
                reason = str(new.failure) if new.parked else None
                now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
                told.append(
                    MailboxEvent(
                        type=f"exchange.listener.{kind}", mailbox=new.mailbox, time=now, reason=reason
                    )
                )
        if told:
            await self.publish(told)

    def _tell_transition(self, before: GroupState, after: GroupState, outcome: Outcome) -> None:
        match outcome:
            case StreamEnded(lasted, failures, _):
                self._tell_stream_end(lasted, failures)
            case Discovered(gone):
                self._log.info("group.discovered", gone=len(gone), unknown=len(outcome.unknown))
            case Subscribed(ids, refused):
                codes = Counter(failure.code for _, failure in refused)
                level = self._log.warning if refused else self._log.info
                level("group.subscribed", subscribed=len(ids), refused=len(refused), codes=dict(codes))
        for old, new in pairs(before.members, after.members):
            if new.parked and not old.parked:
                self._log.warning("mailbox.parked", mailbox=new.mailbox, **_why(new.failure))
            elif old.parked and not new.parked:
                self._log.info("mailbox.unparked", mailbox=new.mailbox)
            elif new.failure is not None and new.failure is not old.failure:
                self._log.info(
                    "mailbox.refused", mailbox=new.mailbox, failures=new.failures, **_why(new.failure)
                )
        if after.separate is not None and after.separate != before.separate:
            self._log.warning("group.separating", mailboxes=len(after.separate.mailboxes))
        if after.discover is not None and after.discover != before.discover:
            self._log.info("group.discovering", mailboxes=len(after.discover.mailboxes))
        if after.anchor != before.anchor:
            self._log.info("group.anchor_changed", old=before.anchor, anchor=after.anchor)
        if after.paused_until is not None and after.paused_until != before.paused_until:
            seconds = round(after.paused_until - trio.current_time(), 3)
            self._log.warning("group.waiting", seconds=seconds, failures=after.failures or after.flaps)
        if after.subscribe is not None and after.subscribe != before.subscribe:
            self._log.info("group.subscribing", mailboxes=len(after.subscribe.mailboxes))

    def _tell_stream_end(self, lasted: float, failures: tuple[Failure, ...]) -> None:
        seconds = round(lasted, 3)
        if not failures:
            self._log.info("stream.closed", lasted=seconds)
        for failure in failures:
            name = STREAM_ENDS.get(failure.code, "stream.refused")
            lost = len(failure.subscription_ids)
            self._log.warning(name, lasted=seconds, subscriptions=lost, **_why(failure))


class Task:
    """One action at work, and the ways to end it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.heard = False
        self.well: float | None = None  # when the server was last heard
        self.cut = False  # it was ended before its own end
        self._until = inf
        self._awaiting: trio.CancelScope | None = None

    @property
    def ending(self) -> bool:
        """Whether it has been told to come to an end."""
        return self._until < inf

    def end(self) -> None:
        """Ends it where it stands."""
        self.scope.cancel()

    def end_within(self, seconds: float) -> None:
        """Leaves it this long to come to its own end; a batch that is being handed over is not cut off."""
        self._until = trio.current_time() + seconds
        if self._awaiting is not None:
            self._awaiting.deadline = min(self._awaiting.deadline, self._until)

    @contextmanager
    def patience(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Awaits what is inside so long at most, or as long as end_within() leaves it."""
        deadline = min(trio.current_time() + seconds, self._until)
        with trio.CancelScope(deadline=deadline) as self._awaiting:
            yield self._awaiting
        self._awaiting = None


def pairs(before: Sequence[Member], after: Sequence[Member]) -> Iterator[tuple[Member, Member]]:
    """Each member as it was and as it is; one that was not there before is paired with a new one."""
    known = {member.mailbox: member for member in before}
    for member in after:
        yield known.get(member.mailbox, Member(member.mailbox)), member


def _why(failure: Failure | None) -> dict[str, str]:
    return {} if failure is None else {"code": failure.code, "text": failure.text}


# Seconds over which the groups come back that had waited until the server was heard.
ENCOURAGED = 3.0

# Ends of a stream after which what was on its way is lost, though the subscriptions live on.
LOSSY = frozenset(
    {
        "ConnectionReset",
        "EnvelopeTooLarge",
        "ForbiddenXml",
        "MalformedXml",
        "NotSoap",
        "ReadTimeout",
        "StreamIncomplete",
        "StreamSilent",
    }
)

# A server may write on after Closed, but not for long.
AFTER_CLOSED = 5.0

STREAM_ENDS = {
    "StreamSilent": "stream.silent",
    "StreamIncomplete": "stream.incomplete",
    "ConnectionReset": "stream.broken",
}
