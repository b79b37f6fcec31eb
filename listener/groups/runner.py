"""Runs one group: performs the actions of its state machine (listener/groups/group.py), one task for each action."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import inf

import structlog
import trio

from listener.catchup.queries import MailboxRoute
from listener.ews.codes import Failure, crash
from listener.ews.subscription import get_streaming_events
from listener.exchange.client import ExchangeClient
from listener.groups.actions import (
    Action,
    Discover,
    Discovered,
    Outcome,
    Split,
    SplitDone,
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
from listener.groups.group_context import GroupContext, Ingest, Message, Registry, Task
from listener.groups.member import Policy
from listener.groups.publisher import Publisher
from listener.groups.stream_reader import StreamReader
from listener.groups.subscriber import Subscriber
from listener.groups.subscription_spec import SubscriptionSpec
from listener.groups.transitions import lifecycle_events, log_transition

log = structlog.get_logger()


class GroupRunner:
    """The tasks of one group.

    - `streaming`: the server has sent a signal on the newest stream. `opened` is when it first did.
    - `since`: when the current phase of the state began.
    - `finished`: the group has stopped, and accepts no more outcomes.

    `last_seen` has the moment when the stream of each mailbox last worked; the groups share it. Moments before
    `started_at` are from an earlier process. All moments are seconds on trio's clock.
    """

    def __init__(
        self,
        group: Group,
        client: ExchangeClient,
        spec: SubscriptionSpec,
        ingest: Ingest,
        registry: Registry,
        state: GroupState,
        *,
        rng: random.Random | None = None,
        last_seen: dict[str, float] | None = None,
        started_at: float = -inf,
    ) -> None:
        self.client = client
        self.streaming = False
        self.opened: float | None = None
        self.since = trio.current_time()
        self.finished = False
        self._ingest = ingest
        self._registry = registry
        self._rng = rng or random.Random()
        # Unbounded, because post() must not wait. The number of tasks and of callers of post() bounds it.
        outcomes, self._outcomes = trio.open_memory_channel[Message](inf)
        self._log = log.bind(group=group.name)
        self._gaps = Gaps(last_seen, started_at)
        self._context = GroupContext(
            group=group,
            client=client,
            spec=spec,
            registry=registry,
            state=state,
            gaps=self._gaps,
            log=self._log,
            outcomes=outcomes,
        )
        self._subscriber = Subscriber(self._context)
        self._publisher = Publisher(self._context, ingest)
        self._impersonating = spec.impersonate_anchor_on_stream
        self._tasks: dict[Action, Task] = {}
        self._open_readers: set[StreamReader] = set()  # also those of replaced streams
        self._reader: StreamReader | None = None  # of the newest stream that worked
        self._streamed: Stream | None = None  # the action of that stream
        self._closed_at: float | None = None  # when the newest stream came to an orderly end
        self._early_ends = 0  # consecutive streams that came to an orderly end too soon
        self._publish_scope = trio.CancelScope()  # of the lifecycle events that are being published
        self._publish_deadline = inf
        for mailbox, _ in state.live:
            self._gaps.subscribed(mailbox, started_at)
        registry.doubt(group, [id_ for _, id_ in state.live])

    @property
    def group(self) -> Group:
        """The group with its present mailboxes. The group manager sets it before it posts Joined."""
        return self._context.group

    @group.setter
    def group(self, group: Group) -> None:
        self._context.group = group

    @property
    def state(self) -> GroupState:
        """The present state of the state machine."""
        return self._context.state

    @property
    def spec(self) -> SubscriptionSpec:
        """The subscription settings that the next request uses."""
        return self._context.spec

    @property
    def events(self) -> int:
        """The number of events that this group published."""
        return self._publisher.events

    def reconfigure(self, spec: SubscriptionSpec, policy: Policy) -> None:
        """Use these settings from the next request on."""
        self._context.spec, self._context.state = spec, replace(self.state, policy=policy)

    async def run(self) -> None:
        """Run the group until a posted Stop has been carried out."""
        self._log.info("group.started", mailboxes=len(self.state.members), anchor=self.state.anchor)
        try:
            await self._run()
        finally:
            self.streaming, self.opened = False, None
        self._log.info("group.stopped")

    async def _run(self) -> None:
        async with self.client, trio.open_nursery() as nursery:
            self._context.nursery = nursery
            while self._update_tasks(nursery) or self._outcomes.statistics().current_buffer_used:
                task, outcome = await self._outcomes.receive()
                if task is not None:
                    if self._tasks.get(task.action) is not task:
                        continue  # the task was replaced before it ended
                    del self._tasks[task.action]
                await self._advance(task, outcome)
            self.finished = True
            self._publisher.proofs.end()
            # Events that were read are published, within the time that the journal has at the end.
            for reader in self._open_readers:
                reader.end_within(0)
            nursery.cancel_scope.deadline = min(self._publish_deadline, trio.current_time() + PUBLISH_TIMEOUT)

    async def _advance(self, task: Task | None, outcome: Outcome) -> None:
        """Compute the next state, and report what changed."""
        before = self.state
        self._context.state = after = advance(before, outcome, trio.current_time(), self._rng.random())
        if isinstance(outcome, StreamEnded) and task is not None and task.reader is not None:
            self._check_early_end(outcome, task.reader)
        if after.phase != before.phase:
            self.since = trio.current_time()
        for mailbox, id_ in set(after.abandoned).difference(before.abandoned):
            self._registry.release(self.group, id_, mailbox)
        if isinstance(outcome, Subscribed):
            self._subscriber.new_ids.clear()
        if before.members is not after.members or before.anchor != after.anchor:
            self._registry.changed(self.group)
        log_transition(self._log, before, after, outcome, trio.current_time())
        if events := lifecycle_events(before, after, datetime.now(UTC)):
            with trio.CancelScope(deadline=self._publish_deadline) as self._publish_scope:
                await self._ingest.publish(events)

    @property
    def mailboxes_streaming(self) -> int:
        """The number of mailboxes with an open stream on which the server has sent a signal."""
        return len(self.state.stream.subscriptions) if self.streaming and self.state.stream else 0

    def mailboxes_in_stream(self) -> Sequence[str]:
        """Return the mailboxes with an open stream on which the server has sent a signal."""
        stream = self.state.stream if self.streaming else None
        return () if stream is None else [mailbox for mailbox, _ in stream.subscriptions]

    def subscriptions(self) -> dict[str, str]:
        """Return the subscription id of each mailbox that has one, also those of a running Subscribe."""
        return dict(self.state.live) | self._subscriber.new_ids

    def take_over(self, crashed: GroupRunner) -> None:
        """Continue with what is known of gaps where another runner of the same group crashed."""
        for hold in crashed._publisher.proofs.holds.values():
            crashed._gaps.lost(hold.mailbox, "GroupError", hold.since)
        self._gaps.take_over(crashed._gaps)
        self._subscriber.take_over(crashed._subscriber)
        self._context.disowned |= crashed._context.disowned
        self._impersonating, self._publisher.events = crashed._impersonating, crashed.events

    def check_access(self, mailbox: str) -> None:
        """Test in a task whether a streaming mailbox can be read, and suspend it if not. Return at once."""
        if not self.finished:
            self._subscriber.start_check_access(mailbox)

    @property
    def last_seen_at(self) -> float | None:
        """When a stream of this group last worked."""
        return None if self._reader is None else self._reader.last_seen

    def missing_since(self) -> dict[str, float]:
        """Return the mailboxes that may miss events from before `last_seen_at`, and the start of that time."""
        moments = (
            (m.mailbox, self._gaps.missing_since(m.mailbox, streams=m.subscription is not None))
            for m in self.state.members
        )
        found = {mailbox: moment for mailbox, moment in moments if moment is not None}
        for hold in self._publisher.proofs.holds.values():
            if hold.since is not None:
                found[hold.mailbox] = min(hold.since, found.get(hold.mailbox, inf))
        return found

    def record(self) -> GroupCheckpoint:
        """Return the checkpoint of this group."""
        ids, specs = self.subscriptions(), self._subscriber.specs
        mailboxes = [member.mailbox for member in self.state.members]
        return GroupCheckpoint(
            name=self.group.name,
            ews_url=self.group.ews_url,
            grouping_information=self.group.grouping_information,
            access=self.group.access,
            closed=self.group.closed,
            anchor=self.state.anchor,
            owner=self.spec.owner_fingerprint(self.client.account),
            members={m: SubscriptionCheckpoint(ids[m], specs[m]) if m in ids else None for m in mailboxes},
            cookies=self.client.cookies,
        )

    def post(self, outcome: Outcome) -> None:
        """Queue an outcome that no task of this group reports: Joined, Left, Doubted, Stop."""
        if isinstance(outcome, Stop):
            # While the journal accepts nothing, run() waits in publish() and would not receive the Stop.
            self._publish_deadline = trio.current_time() + PUBLISH_TIMEOUT
            self._publish_scope.deadline = self._publish_deadline
        self._context.post(outcome)

    # --- tasks

    def _update_tasks(self, nursery: trio.Nursery) -> bool:
        """Start and end tasks so that they match the actions of the state; return whether there is any action."""
        wanted = self.state.actions
        for action in [a for a in self._tasks if a not in wanted]:
            task = self._tasks.pop(action)
            if task.reader is not None:
                task.reader.end_within(0 if self.state.stopping else self.spec.drain)
            else:
                task.scope.cancel()
        for action in wanted:
            if action not in self._tasks:
                self._tasks[action] = task = self._new_task(action)
                nursery.start_soon(self._perform, task)
        if self.state.stream is None:
            self.streaming, self.opened = False, None
        return bool(wanted)

    def _new_task(self, action: Action) -> Task:
        match action:
            case Stream():
                reader = StreamReader(silence=self.spec.silence, max_envelope=self.spec.max_envelope)
                return Task(action, reader=reader)
            case Unsubscribe():
                # Its cookies lead to the back end of these subscriptions. The group may forget its own any time.
                return Task(action, client=self.client.clone())
        return Task(action)

    async def _perform(self, task: Task) -> None:
        with task.scope:
            try:
                outcome = await self._run_action(task)
            except Exception as error:
                name = type(task.action).__name__
                log.error("group.action_failed", group=self.group.name, action=name, exc_info=error)
                outcome = self._outcome_of_crash(task.action, error)
            await self._context.outcomes.send((task, outcome))

    async def _run_action(self, task: Task) -> Outcome:
        match task.action:
            case Subscribe() as action:
                return await self._subscriber.subscribe(action)
            case Stream() as action:
                assert task.reader is not None
                return await self._stream(action, task.reader)
            case Wait() as action:
                return await self._wait(action)
            case Unsubscribe() as action:
                assert task.client is not None
                await self._subscriber.unsubscribe(action, task.client)
                return Unsubscribed()
            case Discover(mailboxes):
                return await self._registry.find(self.group, mailboxes)
            case Split(mailboxes, each):
                self._registry.split(self.group, mailboxes, each=each)
                return SplitDone(mailboxes)

    def _outcome_of_crash(self, action: Action, error: Exception) -> Outcome:
        """Return the outcome of an unknown exception: a failure of as few mailboxes as possible, to be retried.

        Raises the exception if only a restart of the group can help.
        """
        match action:
            case Subscribe(mailboxes):
                made = dict(self._subscriber.new_ids)
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
            # Spread the groups, so that they do not all return at the same moment.
            await trio.sleep(self._rng.uniform(0, RETRY_SPREAD))
            return Waited(early=True)
        return Waited()

    # --- the stream

    async def _stream(self, action: Stream, reader: StreamReader) -> StreamEnded:
        started_at = trio.current_time()
        mailboxes = [mailbox for mailbox, _ in action.subscriptions]
        since = self._gaps.known(mailboxes)
        if self._closed_at is not None and started_at - self._closed_at > REOPENED_WITHIN:
            self._doubt(action)
        self._closed_at = None
        self._open_readers.add(reader)
        try:
            failures = await self._read(action, reader, since)
        except Exception as error:
            # Signals that were read may not be published. Catch-up finds them.
            log.error("stream.crashed", group=self.group.name, exc_info=error)
            failures = (crash(error, "GroupError"),)
        finally:
            self._open_readers.remove(reader)
            if reader.last_seen is not None:
                self._gaps.seen(mailboxes, reader.last_seen)
                since = dict.fromkeys(mailboxes, reader.last_seen)
        if failures and self._streamed is action:
            self._streamed = None
        # At a stop, the newest stream needs no gap: the next process assumes one since it was last seen.
        cut = reader.cut and not (self.state.stopping and reader is self._reader)
        if self._is_newest(action, reader):
            if failures or reader.cut or not reader.closed:
                # The server may have restarted, and may give these ids to other mailboxes before the next stream.
                self._doubt(action)
            else:
                self._closed_at = trio.current_time()
        lossy = self._gaps.ended(mailboxes, failures, cut=cut, since=since)
        if lossy and not self._is_newest(action, reader):
            self._report_gaps()  # a newer stream works already; otherwise the next one is opened first
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
        headers = self._context.headers(action.anchor)
        async with reader.open(lambda: self.client.open_stream(body, headers)):
            while (signals := await reader.receive()) is not None:
                if reader.alive and signals and self._is_newest(action, reader):
                    self._reader = reader
                    self._note_streaming(action)
                try:
                    await self._publisher.publish(signals, owners, since)
                except BaseException:
                    reader.undo()
                    raise
                for signal in signals:
                    if isinstance(signal, Failure):
                        self.client.throttle.failed(signal)
        failures = reader.failures
        if not impersonating and any(f.code == "ErrorExceededConnectionCount" for f in failures):
            # Exchange charges a stream in a mailbox's name to the mailbox's budget, not to the account's.
            self._impersonating = True
            self._log.warning("stream.impersonating", code="ErrorExceededConnectionCount")
        return failures

    def _is_newest(self, action: Stream, reader: StreamReader) -> bool:
        """Return whether no other stream has replaced this one."""
        task = self._tasks.get(action)
        return task is not None and task.reader is reader

    def _doubt(self, action: Stream) -> None:
        """Request a new proof of all ids of a stream."""
        self._registry.doubt(self.group, [id_ for _, id_ in action.subscriptions])

    def _note_streaming(self, action: Stream) -> None:
        """Report, once for each stream, that the server has sent a signal on it."""
        if self.streaming and self._streamed is action:
            return
        before = self._streamed if self.streaming else None
        self.streaming, self._streamed, self.opened = True, action, trio.current_time()
        self.client.throttle.server_answered()
        # A stream with the same subscriptions is reopened every half hour, which is of no interest.
        changed = before is None or before.subscriptions != action.subscriptions
        log_line = self._log.info if changed else self._log.debug
        log_line("group.streaming", mailboxes=len(action.subscriptions), anchor=action.anchor)
        self._registry.changed(self.group)  # the cookies may have changed
        self._registry.resumed([mailbox for mailbox, _ in action.subscriptions])
        self._report_gaps()

    def _report_gaps(self) -> None:
        """Request catch-up for the gaps of all mailboxes that stream again."""
        if self.streaming and self._streamed:
            for gap in self._gaps.close(mailbox for mailbox, _ in self._streamed.subscriptions):
                self._registry.gap(*gap)

    def _check_early_end(self, outcome: StreamEnded, reader: StreamReader) -> None:
        """Log once when consecutive streams come to an orderly end much too soon."""
        early = not outcome.failures and outcome.duration < self.spec.window * 60 / 4
        self._early_ends = self._early_ends + 1 if early else 0
        if self._early_ends == EARLY_ENDS:
            cause = (
                "another connection of this account seems to read the same subscriptions"
                if reader.closed
                else "a proxy or load balancer seems to end long responses"
            )
            duration = round(outcome.duration, 3)
            self._log.warning("stream.closed_early", duration=duration, count=EARLY_ENDS, cause=cause)

    # --- requests of catch-up

    def route(self, mailbox: str) -> MailboxRoute | None:
        """Return how to send requests about a mailbox of this group; None while it has no stream."""
        if not self.streaming or self.state.subscription_of(mailbox) is None:
            return None
        return self.route_without_stream(mailbox)

    def route_without_stream(self, mailbox: str) -> MailboxRoute | None:
        """Return how to send requests about a mailbox of this group, with or without a stream.

        Returns None while the server does not answer, so that an outage causes no further requests.
        """
        if not self.streaming and self.client.last_failure not in STREAM_FAILURES:
            return None
        return self._context.route(mailbox, self.client.server_offset)


# The number of consecutive early ends of streams that is logged as a warning.
EARLY_ENDS = 3

# Seconds after an orderly end within which a new stream reaches the same server process, so that ids stay valid.
REOPENED_WITHIN = 2.0

# Failures of streams on a server that answers other requests, for example because a proxy holds streams back.
STREAM_FAILURES = frozenset(("", "ReadTimeout", "StreamSilent", "Http504", "ErrorExceededConnectionCount"))

# Seconds at the end of a group that the journal has to accept the last events.
PUBLISH_TIMEOUT = 3.0

# Seconds over which the paused groups retry after the server has answered one of them.
RETRY_SPREAD = 3.0
