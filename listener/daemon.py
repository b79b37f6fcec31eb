"""The composition root: builds everything from the configuration, in one nursery, and ends it in order.

Start: journal, handlers, groups, those of the last time first. End: groups, what is kept of them, then what is in the
journal for the handlers, then these, then the journal.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial

import structlog
import trio

from listener import log as logging
from listener._version import __version__
from listener.admin.notifier import Notifier
from listener.admin.status_line import status_line
from listener.admin.systemd import Systemd
from listener.build import (
    access,
    delivery_limits,
    discovery,
    expander,
    mailbox_source,
    mailbox_sources,
    policy,
    retention,
    scope,
    sorted_out,
    spec,
)
from listener.catchup.catchup import CatchUp
from listener.catchup.history_loader import HistoryLoader
from listener.catchup.snapshots import stored_folders
from listener.catchup.sync_states import JournalStates
from listener.config import Config
from listener.config.warnings import warnings
from listener.delivery.delivery import Delivery, Source, Worker
from listener.errors import ConfigError, Problem
from listener.event import MailboxEvent
from listener.exchange.auth.lockout import REFUSALS
from listener.exchange.client import ExchangeClient
from listener.groups.affinity import Group
from listener.groups.checkpoint import Restored, last_seen, restored
from listener.groups.checkpointer import Checkpointer
from listener.groups.group import GroupState
from listener.groups.manager import GroupManager
from listener.groups.runner import GroupRunner
from listener.journal import Journal, sqlite
from listener.log import open_audit, tell_repeated
from listener.placement import Placement
from listener.preflight.scope import Attempt, Finding
from listener.tracing import Home

log = structlog.get_logger()

OpenJournal = Callable[[], AbstractAsyncContextManager[Journal]]
ListenerSocket = Callable[["Daemon"], AbstractAsyncContextManager[None]]


class Daemon:
    """The listener of one configuration, ready to run.

    `roster`, `delivery`, `journal`, `catch_up` and the counts (`events` received, `gaps` noted) are for whoever
    watches it. `door` is where operators come in: it is open while the journal is.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[Source],
        open_journal: OpenJournal | None = None,
        notifier: Notifier | None = None,
        door: ListenerSocket | None = None,
    ) -> None:
        self.config = config
        self.events = 0
        self.gaps = 0
        self._door = door or (lambda _: nullcontext())
        self.systemd = Systemd(notifier or Notifier(), self._headline)
        self._phase, self._stage = "Opening the journal and the handlers", "starting"
        self.journal: Journal | None = None
        self._open_journal = open_journal or partial(
            sqlite.open_journal, config.state_directory, keep=retention(config)
        )
        self.access = access(config)
        self.spec = spec(config)
        self.policy = policy(config)
        self.tracing = self.access.tracing
        self.tracing.home, self.tracing.changed = self._home, self._note_watchers
        self.delivery = Delivery(tuple(self._new_lane(source, config) for source in sources))
        self.discovery = discovery(config, self.access)
        self.scope = scope(config, self.access, self.discovery)
        self.mailbox_source = mailbox_source(
            config, expander(config, self.access, self.discovery), self._populate
        )
        known, sought = sorted_out(config, self.mailbox_source.mailboxes)
        self.manager = GroupManager(
            known=known,
            sought=sought,
            kind_of=self.spec.access.kind_of,
            discovery=self.discovery,
            new_runner=self._new_runner,
            group_size=config.affinity.group_size,
            retry=self.policy.backoff,
            suspended=self.policy.suspended,
            refresh=config.affinity.refresh,
            gaps=self._note_gap,
            resumed=self._note_stream,
            left=self._forget,
            subscribed=self._note_subscription,
            noted=self._note_change,
            kept=self._keep,
            unfilled=lambda: {} if self.catch_up is None else self.catch_up.unfilled(),
        )
        self.catch_up: CatchUp | None = None
        self._attempts: Sequence[Attempt] | None = None
        self.checkpointer: Checkpointer | None = None
        self._told: HistoryLoader | None = None

    async def run(self, stop: trio.Event) -> None:
        """Listens until `stop` is set, and then ends in order.

        Raises ConfigError when the journal or a handler cannot be opened, or if the account reaches what it must not.
        """
        with open_audit(self.config.log.audit_file) as self.access.audit.logger:
            await self._run(stop)

    async def _run(self, stop: trio.Event) -> None:
        log.info("listener.started", version=__version__, mailboxes=self.manager.mailboxes)
        self._log_warnings()
        async with (
            self.systemd.at_hand(),
            self._open_journal() as journal,
            self._door(self),
            trio.open_nursery() as handlers,
        ):
            self.journal = self.systemd.heart = journal
            self.access.auth.persist_refusals(self.config.state_directory / REFUSALS)
            handlers.start_soon(self._tell_end, stop)
            handlers.start_soon(JournalStates(journal).forget_strangers, self.manager.addresses)
            await self._recall(journal)
            if await unless(stop, self._check_scope) and await unless(
                stop, partial(handlers.start, self.delivery.run, journal)
            ):
                self.catch_up = self._new_catch_up(journal)
                self.checkpointer = Checkpointer(journal, self.manager)
                self.manager.stored_folders = partial(stored_folders, JournalStates(journal))
                last = await self._remember(self.checkpointer)
                if self.catch_up.mode == "sync":  # else nobody asks what was told, and it would only pile up
                    self._told = HistoryLoader(self.catch_up.note)
                recent = journal.recent(last - self.catch_up.memory, MOST_RECALLED)
                self._phase, self._stage = "", "listening"
                self.systemd.ready()
                await self._listen(partial(self._catch_up, self.catch_up, self._told, recent), stop)
                await self.delivery.drain(self.config.shutdown.grace)
            handlers.cancel_scope.cancel()
        tell_repeated(everything=True)
        log.info("listener.stopped")

    def _log_warnings(self) -> None:
        for warning in warnings(self.config):
            log.warning("configuration.warned", where=warning.where, text=warning.what)

    async def _recall(self, journal: Journal) -> None:
        """Before anything begins: who was to be listened to when the daemon ended."""
        await self.mailbox_source.recall(journal)
        self.manager.known, self.manager.sought = sorted_out(self.config, self.mailbox_source.mailboxes)

    def _populate(self) -> None:
        """The mailbox source has changed."""
        self.manager.change(*sorted_out(self.config, self.mailbox_source.mailboxes))

    async def _check_scope(self) -> None:
        """Raises ConfigError if the account reaches a mailbox that must refuse it, and may not start then."""
        if self.config.impersonation.if_not_denied == "refuse_to_start" and self.scope.mailboxes:
            self._attempts = await self.scope.prove()
            if reached := [each for each in self._attempts if each.finding is Finding.REACHED]:
                raise ConfigError(
                    [
                        Problem("impersonation.must_deny", f"the account reaches {a.mailbox}: {a.proof}")
                        for a in reached
                    ]
                )

    @property
    def stage(self) -> str:
        """One word for where it is: starting, listening or ending."""
        return self._stage

    async def change(self, config: Config, sources: Sequence[Source]) -> None:
        """Takes up another configuration, as far as that can be while it listens (listener/admin/reload.py).

        Raises ConfigError if a handler cannot be opened; then nothing has changed.
        """
        workers = {worker.name: worker for worker in self.delivery.workers}
        await self.delivery.change(
            [
                workers[source.name]
                if source.name in workers and self._is_same(config, source.name)
                else self._new_lane(source, config)
                for source in sources
            ]
        )
        self.config, self.policy = config, policy(config)
        self._log_warnings()
        rules, anew = self.spec.access, spec(config)
        rules.default, rules.others = (
            anew.access.default,
            anew.access.others,
        )  # the group manager asks them, too
        self.spec = replace(anew, access=rules)
        self.access.throttles.change(config.exchange.concurrency)
        self.manager.retry, self.manager.suspended = self.policy.backoff, self.policy.suspended
        self.manager.refresh = config.affinity.refresh
        for runner in self.manager.runners.values():
            runner.spec, runner.state = self.spec, replace(runner.state, policy=self.policy)
        if self.catch_up is not None:
            self.catch_up.interval = config.catch_up.interval
            self.catch_up.idle_interval = config.catch_up.idle_interval
            self.catch_up.initial = config.catch_up.initial
        anew_scope = scope(config, self.access, self.discovery)
        self.scope.places, self.scope.ways = anew_scope.places, anew_scope.ways
        mailboxes = config.mailboxes
        self.mailbox_source.expand = expander(config, self.access, self.discovery).expand
        self.mailbox_source.change(
            mailbox_sources(config), refresh=mailboxes.refresh, max_drop=mailboxes.max_drop
        )

    def _is_same(self, config: Config, handler: str) -> bool:
        """Whether a handler is, and is treated, as it was."""
        return config.handlers.get(handler) == self.config.handlers.get(handler) and delivery_limits(
            config, handler
        ) == delivery_limits(self.config, handler)

    def _new_catch_up(self, journal: Journal) -> CatchUp:
        kinds = frozenset(self.config.subscription.events)
        return CatchUp(
            ask=self.manager.way,
            ask_without=self.manager.way_without_stream,
            initial=self.config.catch_up.initial,
            states=JournalStates(journal),
            kinds=kinds,
            mode=self.config.catch_up.mode,
            interval=self.config.catch_up.interval,
            idle_interval=self.config.catch_up.idle_interval,
            silent=self.manager.renew,
            refused=self.manager.check_access,
            # Most of a catch-up is waiting for streams that are late; how much is asked is the budget's affair.
            concurrency=64,
            sweepers=16,
            start_spread=min(START_SPREAD, START_EACH * self.manager.mailboxes),
            started_at=trio.current_time(),
        )

    async def _remember(self, checkpointer: Checkpointer) -> float:
        """Begins where the last process ended, as far as the configuration is still the same. Returns when that was,
        in Unix seconds, as far as is known."""
        saved, heard = await checkpointer.load()
        manager, account = self.manager, self.access.auth
        places: dict[str, Placement | None] = dict.fromkeys(manager.sought)
        places |= {place.mailbox: place for place in manager.known}
        manager.restored = restored(
            saved,
            places,
            kind_of=self.spec.access.kind_of,
            maker=lambda url: self.spec.maker(account.of(url).scheme.account),
            spec=self.spec.of,
            size=self.config.affinity.group_size,
        )
        manager.started_at, now = trio.current_time(), time.time()
        manager.well |= {
            mailbox: manager.started_at - (now - moment)
            for mailbox, moment in last_seen(saved, heard, now).items()
            if mailbox in places
        }
        log.info(
            "subscriptions.restored",
            mailboxes=sum(len(each.kept.subscriptions) for each in manager.restored),
            groups=len(manager.restored),
            abandoned=sum(len(each.kept.abandoned) for each in manager.restored),
        )
        return min(now, max(heard.groups.values(), default=now))

    def _note_change(self, group: str) -> None:
        if self.checkpointer is not None:
            self.checkpointer.note(group)

    async def _keep(self, group: str) -> None:
        if self.checkpointer is not None:
            await self.checkpointer.keep(group)

    def _new_lane(self, source: Source, config: Config) -> Worker:
        return Worker(source, delivery_limits(config, source.name), self.tracing)

    def _home(self, mailbox: str) -> Home | None:
        runner = self.manager.runner_of(mailbox)
        if runner is None:
            return None
        return Home(runner.group.name, runner.state.anchor, own=runner.group.access == "own")

    def _note_watchers(self, on: bool) -> None:
        logging.watch(self.tracing.trace_log if on else None)

    def _note_gap(self, mailbox: str, since: float | None, reason: str) -> None:
        self.gaps += 1
        if self.catch_up is not None:
            self.catch_up.gap(mailbox, since, reason)

    def _note_subscription(self, mailbox: str, new: bool) -> None:
        if self.catch_up is not None:
            self.catch_up.subscribed(mailbox, new=new)

    def _note_stream(self, mailboxes: Sequence[str]) -> None:
        if self.catch_up is not None:
            self.catch_up.resume(mailboxes)

    def _forget(self, mailboxes: Sequence[str]) -> None:
        if self.catch_up is not None:
            for mailbox in mailboxes:
                self.catch_up.drop(mailbox)

    async def _publish(self, batch: Sequence[MailboxEvent]) -> None:
        """What came on a stream is safe in the journal before it counts as delivered."""
        if self.catch_up is not None:
            batch = self.catch_up.unreported(batch)
            if not batch:
                return
            self.catch_up.announce(batch)
        await self.delivery.publish(batch)
        self.events += len(batch)
        if self.tracing.on:
            for event in batch:
                self.tracing.emit(event.mailbox, "event", type=event.type, subject=event.subject, id=event.id)
        if self._told is not None:
            self._told.note(batch)

    async def _catch_up(
        self,
        catch_up: CatchUp,
        told: HistoryLoader | None,
        recent: AsyncGenerator[Sequence[MailboxEvent], None],
    ) -> None:
        """Compares mailboxes, as soon as what was told before this process began is known."""
        if told is not None:
            started_at = trio.current_time()
            recalled = await told.recall(recent, self.manager.addresses())
            if recalled.read >= MOST_RECALLED:
                catch_up.delivered.doubt(self.manager.addresses())
            seconds = round(trio.current_time() - started_at, 3)
            log.info("catchup.history_loaded", events=recalled.noted, seconds=seconds)
        await catch_up.run()

    async def _listen(self, catch_up: Callable[[], Awaitable[None]], stop: trio.Event) -> None:
        """Keeps all groups at work until `stop` is set and they have ended."""
        assert self.checkpointer is not None
        async with trio.open_nursery() as groups:
            groups.start_soon(self.manager.run)
            async with trio.open_nursery() as meanwhile:
                meanwhile.start_soon(self._tell_progress)
                meanwhile.start_soon(self._sum_up)
                meanwhile.start_soon(catch_up)
                meanwhile.start_soon(self.mailbox_source.run)
                meanwhile.start_soon(self.scope.watch, self._attempts)
                meanwhile.start_soon(self.checkpointer.run)
                await stop.wait()
                meanwhile.cancel_scope.cancel()
            self.manager.stop(unsubscribe=self.config.shutdown.unsubscribe)
        with trio.move_on_after(LAST_WRITE):
            await self.checkpointer.save()

    async def _tell_end(self, stop: trio.Event) -> None:
        """Wherever the daemon is when `stop` is set, in the midst of its start too."""
        await stop.wait()
        grace = self.config.shutdown.grace
        log.info("listener.stopping", grace=grace)
        self._phase, self._stage = "Ending", "ending"
        self.systemd.stopping(within=grace + ENDING)

    def _headline(self) -> str:
        figures = None if self.journal is None else self.journal.figures
        return status_line(
            phase=self._phase,
            mailboxes=self.manager.mailboxes,
            streaming=self.manager.streaming,
            suspended=self.manager.waiting,
            missing=len(self.manager.missing),
            pause=self.access.throttles.pause,
            journal=figures,
        )

    @staticmethod
    async def _sum_up() -> None:
        """Failures that repeat are told once a minute."""
        while True:
            await trio.sleep(SUMMING)
            tell_repeated()

    async def _tell_progress(self) -> None:
        """Thousands of mailboxes take their time to come back: the log says how far they are."""
        told, twice = 0, set[str]()
        while True:
            await trio.sleep(PROGRESS)
            before, twice = twice, set(self.manager.duplicates)
            if lasting := sorted(before & twice):  # a mailbox that moves is in two groups for a moment
                log.error("mailboxes.duplicate_streams", count=len(lasting), mailboxes=lasting[:5])
            streaming, mailboxes = self.manager.streaming, self.manager.mailboxes
            if streaming != told or streaming < mailboxes - self.manager.waiting - len(self.manager.missing):
                log.info(
                    "listener.progress",
                    streaming=streaming,
                    mailboxes=mailboxes,
                    groups=len(self.manager.runners),
                    suspended=self.manager.waiting,
                    missing=len(self.manager.missing),
                    concurrency=self.access.throttles.limit,
                    pause=round(self.access.throttles.pause, 3),
                )
                told = streaming

    def _new_runner(
        self, group: Group, manager: GroupManager, before: Restored | None = None, /
    ) -> GroupRunner:
        client = ExchangeClient(group.ews_url, self.access, () if before is None else before.cookies)
        kept = None if before is None else before.kept
        state = GroupState.start(group.mailboxes, self.policy, kept, apart=group.closed)
        return GroupRunner(
            group,
            client,
            self.spec,
            self._publish,
            manager,
            state,
            well=manager.well,
            started_at=manager.started_at,
        )


# Seconds between two lines of progress.
PROGRESS = 10.0

# Seconds between two looks at what the log has held back.
SUMMING = 5.0

# Seconds that the end may take beside the grace of handlers: all that it waits for is bounded by less.
ENDING = 30.0

# Seconds that the disk has at the end to take what is kept of groups.
LAST_WRITE = 3.0

# So many of the last events are recalled after a start, which takes some seconds of work, beside the streams.
MOST_RECALLED = 500_000

# Seconds over which mailboxes are first compared after a start: so many for each, and this at most.
START_EACH = 0.02
START_SPREAD = 30.0


async def unless(stop: trio.Event, work: Callable[[], Awaitable[object]]) -> bool:
    """Does this work; whether it came to its end before `stop` was set."""
    done = False
    async with trio.open_nursery() as working:

        async def give_up() -> None:
            await stop.wait()
            working.cancel_scope.cancel()

        working.start_soon(give_up)
        await work()
        done = True
        working.cancel_scope.cancel()
    return done
