"""Performs what the state machine of a group asks for. One task a group, one task an action.

Events leave through `ingest`, one batch for each chunk of the stream.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2s
from math import inf
from typing import Protocol

import msgspec
import structlog
import trio

from listener.access import AccessRules
from listener.catchup.queries import GONE, MailboxRoute, Queries
from listener.errors import ExchangeError
from listener.event import MailboxEvent
from listener.ews.codes import Failure, Verdict, crash
from listener.ews.events import Event, EventKind, Notification, mailbox_event
from listener.ews.folders import get_folder, read_get_folder
from listener.ews.stream import Signal
from listener.ews.subscription import (
    get_streaming_events,
    read_subscribe,
    read_unsubscribe,
    subscribe,
    unsubscribe,
)
from listener.ews.xml import excerpt
from listener.exchange.auth.lockout import MAILBOX_REFUSAL_CODES
from listener.exchange.client import ExchangeClient
from listener.groups.actions import (
    Action,
    Denied,
    Discover,
    Discovered,
    Doubted,
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
from listener.groups.checkpoint import GroupCheckpoint, SubscriptionCheckpoint
from listener.groups.gaps import Gaps
from listener.groups.group import GroupState, advance
from listener.groups.member import Policy
from listener.groups.proof import Hold, Proofs
from listener.groups.stream_reader import StreamReader
from listener.groups.transitions import lifecycle_events, tell_transition

log = structlog.get_logger()


class Registry(Protocol):
    """Knows all groups, and moves mailboxes between them (listener/groups/manager.py does)."""

    async def seek(self, group: Group, mailboxes: Sequence[str], /) -> Discovered: ...
    def gap(self, mailbox: str, since: float | None, reason: str, /) -> None: ...
    def resumed(self, mailboxes: Sequence[str], /) -> None: ...
    def claim(self, group: Group, subscription: str, mailbox: str, /) -> None: ...
    def release(self, group: Group, subscription: str, mailbox: str, /) -> None: ...
    def owner(self, group: Group, subscription: str, /) -> str | None: ...
    def doubt(self, group: Group, subscriptions: Iterable[str], /) -> None: ...
    def confirm(self, group: Group, subscription: str, /) -> None: ...
    def is_proven(self, group: Group, subscription: str, /) -> bool: ...
    def learn(self, mailbox: str, folders: Iterable[str | None], /) -> None: ...
    def judge(self, mailbox: str, folders: Iterable[str | None], /) -> bool | None: ...
    async def folders(self, mailbox: str, /) -> Collection[str]: ...
    def separate(self, group: Group, mailboxes: Sequence[str], /, *, each: bool = False) -> None: ...
    def changed(self, group: Group, /) -> None: ...
    def events_dropped(self, count: int, /) -> None: ...
    async def keep(self, group: Group, /) -> None: ...


class Ingest(Protocol):
    """Takes the events of streams (listener/ingest.py does)."""

    async def publish(self, batch: Sequence[MailboxEvent], /) -> None:
        """Return when these events are durable."""


Message = tuple[Action | None, "Task | None", Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
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

    def owner_fingerprint(self, account: str) -> str:
        """A fingerprint of who made a subscription: only the same may use it again."""
        return _fingerprint(account, self.directory)

    def of(self, mailbox: str) -> str:
        """A fingerprint of what a mailbox is subscribed for: a subscription does for the same only."""
        return _fingerprint(self.access.of(mailbox), sorted(self.events))


@dataclass(slots=True)
class GroupRunner:
    """One group at work. `state` is for whoever watches; post() hands in an outcome from outside.

    `last_seen` has when the stream of each mailbox was last heard; what is older than `started_at`, an earlier
    process heard.
    """

    group: Group
    client: ExchangeClient
    spec: SubscriptionSpec
    ingest: Ingest
    registry: Registry
    state: GroupState
    rng: random.Random = field(default_factory=random.Random)
    last_seen: dict[str, float] = field(default_factory=dict)
    started_at: float = -inf
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
    _specs: dict[str, str] = field(init=False, default_factory=dict)  # what each was subscribed for
    _gaps: Gaps = field(init=False)
    _impersonating: bool = field(init=False)
    _proofs: Proofs = field(init=False)
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _dropped: set[str] = field(init=False, default_factory=set)  # ids that turned out not to be ours
    _denied: set[str] = field(init=False, default_factory=set)  # mailboxes that could not be read
    _checking: set[str] = field(init=False, default_factory=set)
    _closed_at: float | None = field(init=False, default=None)  # when the newest stream ended in good order
    _early: int = field(init=False, default=0)  # streams in a row that ended in good order, but too soon
    _running: dict[Action, Task] = field(init=False, default_factory=dict)
    _mail: trio.MemorySendChannel[Message] = field(init=False)
    _inbox: trio.MemoryReceiveChannel[Message] = field(init=False)
    _log: structlog.typing.FilteringBoundLogger = field(init=False)

    def __post_init__(self) -> None:
        # As many outcomes as there are tasks and tellers: bounded by these, and nobody may wait here.
        self._mail, self._inbox = trio.open_memory_channel[Message](inf)
        self._log = log.bind(group=self.group.name)
        self._impersonating = self.spec.impersonate_anchor_on_stream
        self._gaps = Gaps(self.last_seen, self.started_at)
        self._proofs = Proofs(
            self.group, self.registry, self._folders_of, self._publish_held, self._after_drop, self._log
        )
        for mailbox, _ in self.state.live:
            self._gaps.subscribed(mailbox, self.started_at)
            self._specs[mailbox] = self.spec.of(mailbox)
        self.registry.doubt(self.group, [id_ for _, id_ in self.state.live])

    def reconfigure(self, spec: SubscriptionSpec, policy: Policy) -> None:
        """Use these from the next request on."""
        self.spec, self.state = spec, replace(self.state, policy=policy)

    async def run(self) -> None:
        """Keeps the group alive until it has been told to stop and has done so."""
        self._log.info("group.started", mailboxes=len(self.state.members), anchor=self.state.anchor)
        try:
            await self._run()
        finally:
            self.streaming, self.opened = False, None
        self._log.info("group.stopped")

    async def _run(self) -> None:
        async with self.client, trio.open_nursery() as nursery:
            self._nursery = nursery
            while self._arrange(nursery) or self._inbox.statistics().current_buffer_used:
                action, task, outcome = await self._inbox.receive()
                if action is not None:
                    if self._running.get(action) is not task:
                        continue  # it had been replaced before it ended
                    del self._running[action]
                before = self.state
                self.state = advance(before, outcome, trio.current_time(), self.rng.random())
                if isinstance(outcome, StreamEnded) and task is not None and task.reader is not None:
                    self._note_end(outcome, task.reader)
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
                        await self.ingest.publish(told)
            self.finished = True
            self._proofs.end()
            # What was read is handed on, as long as the journal takes it.
            for reader in self._readers:
                reader.end_within(0)
            nursery.cancel_scope.deadline = min(self._end_by, trio.current_time() + HANDING_ON)

    @property
    def mailboxes_streaming(self) -> int:
        """How many mailboxes have an open stream that the server has been heard on."""
        return len(self.state.stream.subscriptions) if self.streaming and self.state.stream else 0

    def mailboxes_in_stream(self) -> Sequence[str]:
        """Return the mailboxes whose open stream the server has been heard on."""
        stream = self.state.stream if self.streaming else None
        return () if stream is None else [mailbox for mailbox, _ in stream.subscriptions]

    def subscriptions(self) -> dict[str, str]:
        """Return the subscription id of each mailbox that has one, also those of a Subscribe under way."""
        return dict(self.state.live) | self._fresh

    def take_over(self, crashed: GroupRunner) -> None:
        """Go on with what is known of gaps where another runner of the same group crashed."""
        for hold in crashed._proofs.holds.values():
            crashed._gaps.lost(hold.mailbox, "GroupError", hold.since)
        self._gaps.take_over(crashed._gaps)
        self._specs |= crashed._specs
        self._dropped |= crashed._dropped
        self._denied |= crashed._denied
        self._impersonating, self.events = crashed._impersonating, crashed.events

    def check_access(self, mailbox: str) -> None:
        """Find out whether a mailbox that streams can be read at all, and suspend it if not. Return at once."""
        if self._nursery is not None and not self.finished and mailbox not in self._checking:
            self._checking.add(mailbox)
            self._nursery.start_soon(self._check_access, mailbox)

    @property
    def last_seen_at(self) -> float | None:
        """When a stream of this group was last heard."""
        return None if self._reader is None else self._reader.last_seen

    def missing_since(self) -> dict[str, float]:
        """The mailboxes of which something may be missing from before last_seen_at, and from when on."""
        moments = (
            (m.mailbox, self._gaps.missing_since(m.mailbox, streams=m.subscription is not None))
            for m in self.state.members
        )
        found = {mailbox: moment for mailbox, moment in moments if moment is not None}
        for hold in self._proofs.holds.values():
            if hold.since is not None:
                found[hold.mailbox] = min(hold.since, found.get(hold.mailbox, inf))
        return found

    def record(self) -> GroupCheckpoint:
        """What the next process needs to go on with this group."""
        ids = self.subscriptions()
        mailboxes = [member.mailbox for member in self.state.members]
        return GroupCheckpoint(
            name=self.group.name,
            ews_url=self.group.ews_url,
            grouping_information=self.group.grouping_information,
            access=self.group.access,
            closed=self.group.closed,
            anchor=self.state.anchor,
            owner=self.spec.owner_fingerprint(self.client.account),
            members={
                m: SubscriptionCheckpoint(ids[m], self._specs[m]) if m in ids else None for m in mailboxes
            },
            cookies=self.client.cookies,
        )

    def post(self, outcome: Outcome) -> None:
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
                task.reader.end_within(0 if self.state.stopping else self.spec.drain)
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
                    reader=StreamReader(silence=self.spec.silence, max_envelope=self.spec.max_envelope)
                )
            case Unsubscribe():
                # Its cookies lead to where these subscriptions are; the group may be about to forget them.
                return Task(client=self.client.clone())
        return Task()

    async def _perform(self, action: Action, task: Task) -> None:
        with task.scope:
            try:
                outcome = await self._act(action, task)
            except Exception as error:
                name = type(action).__name__
                log.error("group.action_failed", group=self.group.name, action=name, exc_info=error)
                outcome = self._crashed(action, error)
            await self._mail.send((action, task, outcome))

    async def _act(self, action: Action, task: Task) -> Outcome:
        match action:
            case Subscribe():
                return await self._subscribe(action)
            case Stream():
                assert task.reader is not None
                return await self._stream(action, task.reader)
            case Wait():
                return await self._wait(action)
            case Unsubscribe():
                assert task.client is not None
                await self._unsubscribe(action, task.client)
                return Unsubscribed()
            case Discover(mailboxes):
                return await self.registry.seek(self.group, mailboxes)
            case Separate(mailboxes, each):
                self.registry.separate(self.group, mailboxes, each=each)
                return Separated(mailboxes)

    def _crashed(self, action: Action, error: Exception) -> Outcome:
        """Return what an unknown exception comes to: a failure of as few mailboxes as possible, tried again later.

        Raises the exception where nothing less than a new start of the group would do.
        """
        match action:
            case Subscribe(mailboxes):
                made = dict(self._fresh)
                refused = tuple((m, crash(error)) for m in mailboxes if m not in made)
                return Subscribed(tuple(made.items()), refused)
            case Stream():
                return StreamEnded(0.0, (crash(error, "GroupError"),), alive=False)
            case Unsubscribe():
                return Unsubscribed()
            case Discover(mailboxes):
                return Discovered(unknown=tuple((mailbox, crash(error)) for mailbox in mailboxes))
            case _:
                raise error

    async def _wait(self, action: Wait) -> Waited:
        with trio.CancelScope(deadline=action.until):
            if not action.eager:
                await trio.sleep_forever()
            await self.client.throttle.wait_until_answered()
            # Not all at the same moment.
            await trio.sleep(self.rng.uniform(0, ENCOURAGED))
            return Waited(early=True)
        return Waited()

    # --- Subscribe and Unsubscribe

    def _headers(self, anchor: str) -> dict[str, str]:
        return {"X-AnchorMailbox": anchor, "X-PreferServerAffinity": "true"}

    async def _subscribe(self, action: Subscribe) -> Subscribed:
        ids: list[tuple[str, str]] = []
        refused: list[tuple[str, Failure]] = []
        todo = list(reversed(action.mailboxes))

        async def one(mailbox: str, anchor: str = action.anchor) -> None:
            try:
                await make(mailbox, anchor)
            except ExchangeError as error:
                refused.append((mailbox, error.failure))
            except Exception as error:  # about this mailbox only
                log.error("mailbox.crashed", group=self.group.name, mailbox=mailbox, exc_info=error)
                refused.append((mailbox, crash(error)))

        async def make(mailbox: str, anchor: str) -> None:
            access, spec = self.spec.access.of(mailbox), self.spec.of(mailbox)
            body = subscribe(
                version=self.spec.version,
                impersonate=access.impersonate,
                events=self.spec.events,
                folders=access.folders,
            )
            id_ = await self.client.call(body, self._headers(anchor), read_subscribe)
            if access.kind == "delegate" or mailbox in self._denied:
                # Some servers subscribe a delegate to folders that it has no rights on, and then report nothing.
                if (denial := await self._probe(mailbox, anchor)) is not None:
                    await self._revoke(mailbox, id_, anchor, self.client)
                    raise ExchangeError(denial)
                self._denied.discard(mailbox)
            ids.append((mailbox, id_))
            self._gaps.subscribed(mailbox, trio.current_time())
            self._fresh[mailbox], self._specs[mailbox] = id_, spec
            self._dropped.discard(id_)
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
            if todo and refused and refused[0][1].code in MAILBOX_REFUSAL_CODES and not refused[0][1].wait:
                # The refusal may be about the anchor only: another mailbox shows whether the account is accepted.
                await one(todo[-1], todo.pop())
                if ids:
                    await one(refused.pop(0)[0])
            if not ids:
                return Subscribed((), tuple(refused))
        async with trio.open_nursery() as nursery:
            for _ in range(min(self.spec.subscribe_concurrency, len(todo))):
                nursery.start_soon(worker)
        # Whoever comes after a crash must know who was listened to.
        try:
            await self.registry.keep(self.group)
        except (
            Exception
        ) as error:  # the subscriptions are there all the same, and are saved with the next change
            log.error("group.checkpoint_failed", group=self.group.name, exc_info=error)
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
                await self._revoke(mailbox, id_, action.anchor, client)

        with trio.move_on_after(self.spec.unsubscribe_patience if hurry else inf):
            async with client, trio.open_nursery() as nursery:
                for _ in range(min(self.spec.subscribe_concurrency if hurry else 1, len(todo))):
                    nursery.start_soon(worker)

    async def _revoke(self, mailbox: str, id_: str, anchor: str, client: ExchangeClient) -> None:
        """Unsubscribe. A failure is no trouble: a subscription that nobody reads expires by itself."""
        try:
            access = self.spec.access.of(mailbox)
            body = unsubscribe(id_, version=self.spec.version, impersonate=access.impersonate)
            await client.call(body, self._headers(anchor), read_unsubscribe)
        except ExchangeError as error:
            self._log.debug("mailbox.unsubscribe_failed", mailbox=mailbox, code=error.failure.code)
        except Exception as error:
            log.error("mailbox.crashed", group=self.group.name, mailbox=mailbox, exc_info=error)

    # --- whether a mailbox can be read

    async def _probe(self, mailbox: str, anchor: str) -> Failure | None:
        """Return why none of the mailbox's folders can be read; None if one can. Raises ExchangeError if it cannot be
        found out now."""
        access = self.spec.access.of(mailbox)
        refs = access.folders or (access.folder("inbox"),)
        body = get_folder(refs, id_only=True, version=self.spec.version, impersonate=access.impersonate)
        try:
            answers = await self.client.call(
                body, self._headers(anchor), partial(read_get_folder, folders=refs)
            )
        except ExchangeError as error:
            if _is_denial(error.failure):
                return _denial(error.failure)
            raise
        denials = [each for each in answers.values() if isinstance(each, Failure) and _is_denial(each)]
        return _denial(denials[0]) if len(denials) == len(refs) else None

    async def _check_access(self, mailbox: str) -> None:
        try:
            denial = await self._probe(mailbox, self.state.anchor)
        except ExchangeError:
            denial = None  # it is asked again with the next comparison
        except Exception as error:
            log.error("mailbox.crashed", group=self.group.name, mailbox=mailbox, exc_info=error)
            denial = crash(error)
        finally:
            self._checking.discard(mailbox)
        if denial is not None:
            self._denied.add(mailbox)
            self.post(Denied(mailbox, denial))

    # --- the stream

    async def _stream(self, action: Stream, reader: StreamReader) -> StreamEnded:
        started_at = trio.current_time()
        mailboxes = [mailbox for mailbox, _ in action.subscriptions]
        since = self._gaps.known(mailboxes)
        if self._closed_at is not None and started_at - self._closed_at > SAME_SERVER:
            self.registry.doubt(self.group, [id_ for _, id_ in action.subscriptions])
        self._closed_at = None
        self._readers.add(reader)
        try:
            failures = await self._read(action, reader, since)
        except Exception as error:
            # What was read may not have been handed on: the catch-up finds it.
            log.error("stream.crashed", group=self.group.name, exc_info=error)
            failures = (crash(error, "GroupError"),)
        finally:
            self._readers.remove(reader)
            if reader.last_seen is not None:
                self._gaps.seen(mailboxes, reader.last_seen)
                since = dict.fromkeys(mailboxes, reader.last_seen)
        if failures and self._streamed is action:
            self._streamed = None
        # The next process takes it for granted that something is missing since the newest stream was last heard.
        cut = reader.cut and not (self.state.stopping and reader is self._reader)
        if self._is_newest(action, reader):
            if failures or reader.cut or not reader.closed:
                # The server may have restarted, and have given these ids to others before we come again.
                self.registry.doubt(self.group, [id_ for _, id_ in action.subscriptions])
            else:
                self._closed_at = trio.current_time()
        lossy = self._gaps.ended(mailboxes, failures, cut=cut, since=since)
        if lossy and not self._is_newest(action, reader):
            self._report_gaps()  # another stream has taken over; else the next one is opened first
        return StreamEnded(trio.current_time() - started_at, failures, reader.alive)

    async def _read(
        self, action: Stream, reader: StreamReader, since: Mapping[str, float]
    ) -> tuple[Failure, ...]:
        owners = {id_: mailbox for mailbox, id_ in action.subscriptions}
        impersonating = self._impersonating
        body = get_streaming_events(
            tuple(owners),
            minutes=self.spec.window,
            version=self.spec.version,
            impersonate=self.spec.access.of(action.anchor).impersonate if impersonating else None,
        )

        async with reader.open(lambda: self.client.open_stream(body, self._headers(action.anchor))):
            while (signals := await reader.receive()) is not None:
                if reader.alive and signals and self._is_newest(action, reader):
                    self._reader = reader
                    self._stream_works(action)
                try:
                    await self._publish(signals, owners, since)
                except BaseException:
                    reader.undo()
                    raise
                for signal in signals:
                    if isinstance(signal, Failure):
                        self.client.throttle.failed(signal)
        failures = reader.failures
        if not impersonating and any(f.code == "ErrorExceededConnectionCount" for f in failures):
            # A stream in a mailbox's name is charged to its budget, not to that of the account.
            self._impersonating = True
            self._log.warning("stream.impersonating", code="ErrorExceededConnectionCount")
        return failures

    def _is_newest(self, action: Stream, reader: StreamReader) -> bool:
        """Whether no other stream has taken this one's place."""
        task = self._running.get(action)
        return task is not None and task.reader is reader

    async def _publish(
        self, signals: Sequence[Signal], owners: Mapping[str, str], since: Mapping[str, float]
    ) -> None:
        batch: list[MailboxEvent] = []
        for signal in signals:
            if not isinstance(signal, Notification):
                continue
            id_ = signal.subscription_id
            mailbox = self.registry.owner(self.group, id_)
            if mailbox is None and id_ not in self._dropped:
                mailbox = owners.get(id_)
            if signal.dropped or not id_:
                self._drop_events(signal, owners.values() if mailbox is None else (mailbox,))
            if mailbox is None:
                if id_ and id_ not in self._dropped:
                    self._log.warning("stream.unknown_subscription", subscription_id=excerpt(id_))
                continue
            counts, hold = self._proofs.admit(id_, mailbox, signal.events, since.get(mailbox))
            if counts:
                batch += self._readable(mailbox, signal.events)
            elif hold is not None:
                assert self._nursery is not None
                self._nursery.start_soon(self._proofs.prove, hold)
        if batch:
            await self._hand_on(batch)

    async def _hand_on(self, batch: Sequence[MailboxEvent]) -> None:
        self.events += len(batch)
        # One envelope can hold tens of thousands: others must come in between.
        for start in range(0, len(batch), MOST_AT_ONCE):
            await self.ingest.publish(batch[start : start + MOST_AT_ONCE])

    def _readable(self, mailbox: str, events: Sequence[Event]) -> list[MailboxEvent]:
        """Return the events for handlers. An unknown exception suspends this mailbox only."""
        arrived = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        try:
            found = [mailbox_event(mailbox, event, arrived) for event in events]
            self.registry.learn(mailbox, [event.parent_folder_id for event in events])
        except Exception as error:
            log.error("mailbox.crashed", group=self.group.name, mailbox=mailbox, exc_info=error)
            self._gaps.lost(mailbox, "InternalError", None)
            self.post(Denied(mailbox, crash(error)))
            return []
        return found

    async def _publish_held(self, mailbox: str, events: Sequence[Event]) -> None:
        if batch := self._readable(mailbox, events):
            await self._hand_on(batch)

    def _after_drop(self, hold: Hold) -> None:
        """Give the mailbox a new subscription, and let the catch-up find what was dropped."""
        self._dropped.add(hold.subscription)
        self._gaps.lost(hold.mailbox, "unproven", hold.since)
        if self.registry.owner(self.group, hold.subscription) == hold.mailbox:
            self.registry.release(self.group, hold.subscription, hold.mailbox)
        if self.state.subscription_of(hold.mailbox) == hold.subscription:
            self.post(Doubted((hold.mailbox,), taken=True))

    async def _folders_of(self, mailbox: str) -> set[str]:
        """Return the folder ids of a mailbox that its subscription is about. Raises ExchangeError."""
        access = self.spec.access.of(mailbox)
        headers = self._headers(self.state.anchor)
        queries = Queries(
            MailboxRoute(client=self.client, headers=headers, version=self.spec.version, access=access)
        )
        if access.folders is not None:
            return {folder.folder_id for folder in (await queries.folders(access.folders)).values()}
        found = await queries.all_folders()
        parents = {folder.parent_folder_id for folder in found.values() if folder.parent_folder_id}
        return parents.union(found)

    def _note_end(self, outcome: StreamEnded, reader: StreamReader) -> None:
        """Tell once if streams end in good order again and again, but much too soon."""
        early = not outcome.failures and outcome.duration < self.spec.window * 60 / 4
        self._early = self._early + 1 if early else 0
        if self._early == EARLY:
            cause = (
                "another connection of this account seems to read the same subscriptions"
                if reader.closed
                else "a proxy or load balancer seems to end long responses"
            )
            self._log.warning(
                "stream.closed_early", duration=round(outcome.duration, 3), count=EARLY, cause=cause
            )

    def _drop_events(self, notification: Notification, mailboxes: Iterable[str]) -> None:
        """Count events that lack an id, and have the mailboxes compared that they may be about."""
        count = notification.dropped + (0 if notification.subscription_id else len(notification.events))
        among = sorted(set(mailboxes))
        mailbox = among[0] if len(among) == 1 else None
        self._log.warning("stream.events_dropped", events=count, mailbox=mailbox, mailboxes=len(among))
        self.registry.events_dropped(count)
        for each in among:
            self.registry.gap(each, trio.current_time(), WITHOUT_ID)

    def _stream_works(self, action: Stream) -> None:
        if not self.streaming or self._streamed is not action:
            before = self._streamed if self.streaming else None
            self.streaming, self._streamed, self.opened = True, action, trio.current_time()
            self.client.throttle.server_answered()
            # A stream is opened anew every half hour: that is no news.
            news = before is None or before.subscriptions != action.subscriptions
            tell = self._log.info if news else self._log.debug
            tell("group.streaming", mailboxes=len(action.subscriptions), anchor=action.anchor)
            self.registry.changed(self.group)  # its cookies may have
            self.registry.resumed([mailbox for mailbox, _ in action.subscriptions])
            self._report_gaps()

    def _report_gaps(self) -> None:
        """The gaps of those that have a stream again are ready to be filled."""
        if self.streaming and self._streamed:
            for gap in self._gaps.close(mailbox for mailbox, _ in self._streamed.subscriptions):
                self.registry.gap(*gap)

    def route(self, mailbox: str) -> MailboxRoute | None:
        """How to ask about a mailbox of this group; None while it has no stream."""
        if not self.streaming or self.state.subscription_of(mailbox) is None:
            return None
        return self.route_without_stream(mailbox)

    def route_without_stream(self, mailbox: str) -> MailboxRoute | None:
        """How to ask about a mailbox of this group, whether it has a stream or not; None while the server does not
        answer, so that an outage brings no further requests."""
        if not self.streaming and self.client.last_failure not in STREAMS_ONLY:
            return None
        headers = self._headers(self.state.anchor)
        access = self.spec.access.of(mailbox)
        return MailboxRoute(
            client=self.client,
            headers=headers,
            version=self.spec.version,
            access=access,
            server_offset=self.client.server_offset,
        )


@dataclass(eq=False, slots=True)
class Task:
    """One action at work; a Stream has a reader, an Unsubscribe a client of its own."""

    reader: StreamReader | None = None
    client: ExchangeClient | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


def _fingerprint(*what: object) -> str:
    return blake2s(repr(what).encode(), digest_size=8).hexdigest()


# Codes that mean that a mailbox or folder is not there, or that there is no right to it.
_DENIED = GONE | {"ErrorAccessDenied"}


def _is_denial(failure: Failure) -> bool:
    return failure.verdict is Verdict.SUSPEND or failure.code in _DENIED


def _denial(failure: Failure) -> Failure:
    """The failure under a code that suspends the mailbox."""
    if failure.verdict is Verdict.SUSPEND:
        return failure
    return msgspec.structs.replace(failure, code="ErrorFolderNotFound")


# So many streams in a row that end in good order, but too soon, are worth a warning.
EARLY = 3

# A stream that is opened again within so many seconds after the end in good order meets the same server process.
SAME_SERVER = 2.0

# Events that are handed on together.
MOST_AT_ONCE = 250

# Why a mailbox has a gap of which an event lacked its id.
WITHOUT_ID = "EventWithoutId"

# What a request may end with on a server that answers others: a stream that a proxy holds back does.
STREAMS_ONLY = frozenset(("", "ReadTimeout", "StreamSilent", "Http504", "ErrorExceededConnectionCount"))

# Seconds at the end of a group in which the journal may take what was read.
HANDING_ON = 3.0

# Seconds over which the groups come back that had waited until the server was heard.
ENCOURAGED = 3.0
