"""The composition root: builds all parts inside the journal's context, starts them and stops them in order.

Start: journal, handlers, groups (first those of the last process). Stop: groups, their checkpoint, delivery of the
remaining events, handlers, journal.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
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
    configured_placements,
    delivery_limits,
    discovery,
    expander,
    mailbox_source,
    mailbox_sources,
    manager_settings,
    retention,
    spec,
)
from listener.catchup.catchup import NO_OBSERVER, CatchUp, Observer
from listener.catchup.sync_states import JournalStates
from listener.config import Config
from listener.config.warnings import warnings
from listener.delivery.delivery import Delivery, Source, Worker
from listener.errors import ConfigError, Problem
from listener.exchange.auth.lockout import REFUSALS
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.discovery import Autodiscover
from listener.groups.affinity import Group
from listener.groups.checkpoint import GroupCheckpoint, LastSeen, RestoredGroup, last_seen, restored
from listener.groups.checkpointer import Checkpointer
from listener.groups.group import GroupState
from listener.groups.manager import GroupManager
from listener.groups.runner import GroupRunner
from listener.groups.runners import Runners
from listener.ingest import Ingest
from listener.journal import Journal, sqlite
from listener.log import open_audit, tell_repeated
from listener.mailboxes import MailboxSource
from listener.placement import Placement
from listener.preflight.scope import Attempt, Finding, build_scope
from listener.tracing import Home

log = structlog.get_logger()

OpenJournal = Callable[[], AbstractAsyncContextManager[Journal]]


@dataclass(slots=True)
class Lifecycle:
    """The daemon's `stage` (starting, listening or ending), and the `phase` that the status line shows."""

    stage: str = "starting"
    phase: str = "Opening the journal and the handlers"


@asynccontextmanager
async def open_daemon(
    config: Config,
    sources: Sequence[Source],
    *,
    open_journal: OpenJournal | None = None,
    notifier: Notifier | None = None,
    observer: Observer = NO_OBSERVER,
) -> AsyncIterator[Daemon]:
    """Open the journal and build the daemon of one configuration; run() starts it.

    Raises ConfigError if the journal cannot be opened.
    """
    lifecycle = Lifecycle()
    if open_journal is None:
        open_journal = partial(sqlite.open_journal, config.state_directory, keep=retention(config))
    requests = access(config)
    places = discovery(config, requests)
    mailboxes = mailbox_source(config, expander(config, requests, places), lambda: None)
    systemd = Systemd(notifier or Notifier(), partial(_opening_line, lifecycle, mailboxes))
    with open_audit(config.log.audit_file) as requests.audit.logger:
        log.info("listener.started", version=__version__, mailboxes=len(mailboxes.mailboxes))
        _log_warnings(config)
        async with systemd.at_hand(), open_journal() as journal:
            systemd.heart = journal
            requests.auth.persist_refusals(config.state_directory / REFUSALS)
            await mailboxes.recall(journal)
            checkpointer = Checkpointer(journal)
            checkpoints, seen = await checkpointer.load()
            daemon = Daemon(
                config=config,
                sources=sources,
                lifecycle=lifecycle,
                systemd=systemd,
                journal=journal,
                access=requests,
                discovery=places,
                mailbox_source=mailboxes,
                checkpointer=checkpointer,
                checkpoints=checkpoints,
                seen=seen,
                observer=observer,
            )
            systemd.describe = daemon.status_line
            yield daemon


def _opening_line(lifecycle: Lifecycle, source: MailboxSource) -> str:
    """Return the status line before the parts are built."""
    return status_line(
        phase=lifecycle.phase,
        mailboxes=len(source.mailboxes),
        streaming=0,
        suspended=0,
        missing=0,
        pause=0.0,
        journal=None,
    )


class Daemon:
    """All parts of one daemon, on an open journal. Use open_daemon() to create it, and run() to run it."""

    def __init__(
        self,
        *,
        config: Config,
        sources: Sequence[Source],
        lifecycle: Lifecycle,
        systemd: Systemd,
        journal: Journal,
        access: Access,
        discovery: Autodiscover,
        mailbox_source: MailboxSource,
        checkpointer: Checkpointer,
        checkpoints: Sequence[GroupCheckpoint],
        seen: LastSeen,
        observer: Observer,
    ) -> None:
        self.config = config
        self.systemd = systemd
        self.journal = journal
        self.access = access
        self.tracing = access.tracing
        self.discovery = discovery
        self.checkpointer = checkpointer
        self._lifecycle = lifecycle
        now, moment = time.time(), trio.current_time()
        # The journal has the events that handlers received until this moment.
        self._last_process_end = min(now, max(seen.groups.values(), default=now))
        known, sought = configured_placements(config, mailbox_source.mailboxes)
        placements: dict[str, Placement | None] = dict.fromkeys(sought)
        placements |= {placement.mailbox: placement for placement in known}
        self.runners = Runners()
        self.catch_up = self._build_catch_up(observer, len(placements))
        self.delivery = Delivery(tuple(self._build_worker(source, config) for source in sources))
        self.ingest = Ingest(self.catch_up, self.delivery, self.tracing)
        self.manager = GroupManager(
            known=known,
            sought=sought,
            settings=manager_settings(config),
            group_size=config.affinity.group_size,
            discovery=discovery,
            new_runner=self._build_runner,
            runners=self.runners,
            catch_up=self.catch_up,
            checkpointer=checkpointer,
            restored=self._restored(checkpoints, placements),
            last_seen={
                mailbox: moment - (now - then)
                for mailbox, then in last_seen(checkpoints, seen, now).items()
                if mailbox in placements
            },
            started_at=moment,
        )
        self.scope = build_scope(config, access, discovery)
        self.mailbox_source = mailbox_source
        mailbox_source.changed = self._mailboxes_changed
        self.tracing.home, self.tracing.changed = self._home, self._trace_log

    # --- parts

    def _build_catch_up(self, observer: Observer, mailboxes: int) -> CatchUp:
        settings = self.config.catch_up
        return CatchUp(
            routes=self.runners,
            states=JournalStates(self.journal),
            kinds=frozenset(self.config.subscription.events),
            mode=settings.mode,
            initial=settings.initial,
            interval=settings.interval,
            idle_interval=settings.idle_interval,
            observer=observer,
            # A catch-up mostly waits for streams to open. The throttle limits its requests.
            concurrency=64,
            sweepers=16,
            start_spread=min(START_SPREAD, START_EACH * mailboxes),
            started_at=trio.current_time(),
        )

    def _build_worker(self, source: Source, config: Config) -> Worker:
        return Worker(source, delivery_limits(config, source.name), self.tracing)

    def _build_runner(
        self, group: Group, manager: GroupManager, before: RestoredGroup | None = None, /
    ) -> GroupRunner:
        settings = manager.settings
        client = ExchangeClient(group.ews_url, self.access, () if before is None else before.cookies)
        saved = None if before is None else before.saved
        state = GroupState.start(group.mailboxes, settings.policy, saved, closed=group.closed)
        return GroupRunner(
            group,
            client,
            settings.spec,
            self.ingest,
            manager,
            state,
            last_seen=manager.last_seen,
            started_at=manager.started_at,
        )

    def _restored(
        self, checkpoints: Sequence[GroupCheckpoint], placements: dict[str, Placement | None]
    ) -> Sequence[RestoredGroup]:
        """Return the groups of the last process that the present configuration can use."""
        subscriptions, auth = spec(self.config), self.access.auth
        found = restored(
            checkpoints,
            placements,
            kind_of=subscriptions.access.kind_of,
            owner=lambda url: subscriptions.owner_fingerprint(auth.of(url).scheme.account),
            spec=subscriptions.of,
            size=self.config.affinity.group_size,
        )
        log.info(
            "subscriptions.restored",
            mailboxes=sum(len(each.saved.subscriptions) for each in found),
            groups=len(found),
            abandoned=sum(len(each.saved.abandoned) for each in found),
        )
        return found

    # --- start and stop

    @property
    def stage(self) -> str:
        """The stage: starting, listening or ending."""
        return self._lifecycle.stage

    async def run(self, stop: trio.Event) -> None:
        """Run until `stop` is set, and then stop in order.

        Raises ConfigError if a handler cannot be opened, or if the account has access to a must_deny mailbox.
        """
        attempts: Sequence[Attempt] | None = None

        async def check_scope() -> None:
            nonlocal attempts
            attempts = await self._check_scope()

        async with trio.open_nursery() as handlers:
            handlers.start_soon(self._announce_end, stop)
            handlers.start_soon(JournalStates(self.journal).forget_removed, self.manager.addresses)
            if await run_unless(stop, check_scope) and await run_unless(
                stop, partial(handlers.start, self.delivery.run, self.journal)
            ):
                self._lifecycle.stage, self._lifecycle.phase = "listening", ""
                self.systemd.ready()
                await self._listen(stop, attempts)
                await self.delivery.drain(self.config.shutdown.grace)
            handlers.cancel_scope.cancel()
        tell_repeated(everything=True)
        log.info("listener.stopped")

    async def _listen(self, stop: trio.Event, attempts: Sequence[Attempt] | None) -> None:
        """Run all groups until `stop` is set and the groups have ended."""
        async with trio.open_nursery() as groups:
            groups.start_soon(self.manager.run)
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._log_progress)
                tasks.start_soon(self._log_repeated)
                tasks.start_soon(self._catch_up)
                tasks.start_soon(self.mailbox_source.run)
                tasks.start_soon(self.scope.watch, attempts)
                tasks.start_soon(self.checkpointer.run, self.manager)
                await stop.wait()
                tasks.cancel_scope.cancel()
            self.manager.stop(unsubscribe=self.config.shutdown.unsubscribe)
        with trio.move_on_after(CHECKPOINT_TIMEOUT):
            await self.checkpointer.save(self.manager)

    async def _catch_up(self) -> None:
        """Load the events that handlers received before this process, and then run catch-up."""
        since = self._last_process_end - self.catch_up.history_seconds
        await self.ingest.load_history(
            self.journal.recent(since, MAX_HISTORY), MAX_HISTORY, self.manager.addresses()
        )
        await self.catch_up.run()

    async def _check_scope(self) -> Sequence[Attempt] | None:
        """Try to access the must_deny mailboxes; return None if the configuration does not request it at the start.

        Raises ConfigError if the account has access to one of them.
        """
        if self.config.impersonation.if_not_denied != "refuse_to_start" or not self.scope.mailboxes:
            return None
        attempts = await self.scope.verify()
        if reached := [each for each in attempts if each.finding is Finding.REACHED]:
            raise ConfigError(
                [
                    Problem("impersonation.must_deny", f"the account reaches {a.mailbox}: {a.proof}")
                    for a in reached
                ]
            )
        return attempts

    async def _announce_end(self, stop: trio.Event) -> None:
        """Report the shutdown when `stop` is set, also during the start."""
        await stop.wait()
        grace = self.config.shutdown.grace
        log.info("listener.stopping", grace=grace)
        self._lifecycle.stage, self._lifecycle.phase = "ending", "Ending"
        self.systemd.stopping(within=grace + SHUTDOWN_MARGIN)

    # --- configuration

    async def reconfigure(self, config: Config, sources: Sequence[Source]) -> None:
        """Apply another configuration that listener/admin/reload.py has accepted.

        Raises ConfigError if a handler cannot be opened; nothing has changed then.
        """
        workers = {worker.name: worker for worker in self.delivery.workers}
        await self.delivery.change(
            [
                workers[source.name]
                if source.name in workers and self._is_same_handler(config, source.name)
                else self._build_worker(source, config)
                for source in sources
            ]
        )
        self.config = config
        _log_warnings(config)
        self.access.throttles.change(config.exchange.concurrency)
        self.manager.reconfigure(manager_settings(config))
        self.catch_up.reconfigure(
            interval=config.catch_up.interval,
            idle_interval=config.catch_up.idle_interval,
            initial=config.catch_up.initial,
        )
        self.scope.reconfigure(config, self.discovery)
        mailboxes = config.mailboxes
        self.mailbox_source.expand = expander(config, self.access, self.discovery).expand
        self.mailbox_source.change(
            mailbox_sources(config), refresh=mailboxes.refresh, max_drop=mailboxes.max_drop
        )

    def _is_same_handler(self, config: Config, handler: str) -> bool:
        return config.handlers.get(handler) == self.config.handlers.get(handler) and delivery_limits(
            config, handler
        ) == delivery_limits(self.config, handler)

    def _mailboxes_changed(self) -> None:
        self.manager.change(*configured_placements(self.config, self.mailbox_source.mailboxes))

    # --- status and logs

    def status_line(self) -> str:
        """Return the status line for the service manager."""
        return status_line(
            phase=self._lifecycle.phase,
            mailboxes=self.manager.mailboxes,
            streaming=self.manager.streaming,
            suspended=self.manager.suspended,
            missing=len(self.manager.missing),
            pause=self.access.throttles.pause,
            journal=self.journal.figures,
        )

    def _home(self, mailbox: str) -> Home | None:
        runner = self.runners.of(mailbox)
        if runner is None:
            return None
        return Home(runner.group.name, runner.state.anchor, own=runner.group.access == "own")

    def _trace_log(self, on: bool) -> None:
        logging.watch(self.tracing.trace_log if on else None)

    @staticmethod
    async def _log_repeated() -> None:
        """Log what the rate limit suppressed."""
        while True:
            await trio.sleep(RATE_LIMIT_INTERVAL)
            tell_repeated()

    async def _log_progress(self) -> None:
        """Log the number of streaming mailboxes while it changes: thousands of mailboxes take minutes to recover."""
        logged, twice = 0, set[str]()
        while True:
            await trio.sleep(PROGRESS_INTERVAL)
            before, twice = twice, set(self.manager.duplicates)
            if persistent := sorted(before & twice):  # for a moment, a moving mailbox is in two groups
                log.error("mailboxes.duplicate_streams", count=len(persistent), mailboxes=persistent[:5])
            streaming, mailboxes = self.manager.streaming, self.manager.mailboxes
            if streaming != logged or streaming < mailboxes - self.manager.suspended - len(
                self.manager.missing
            ):
                log.info(
                    "listener.progress",
                    streaming=streaming,
                    mailboxes=mailboxes,
                    groups=len(self.runners.by_group),
                    suspended=self.manager.suspended,
                    missing=len(self.manager.missing),
                    concurrency=self.access.throttles.limit,
                    pause=round(self.access.throttles.pause, 3),
                )
                logged = streaming


def _log_warnings(config: Config) -> None:
    for warning in warnings(config):
        log.warning("configuration.warned", where=warning.where, text=warning.what)


async def run_unless(stop: trio.Event, work: Callable[[], Awaitable[object]]) -> bool:
    """Run `work`, cancel it when `stop` is set, and return whether it was completed."""
    done = False
    async with trio.open_nursery() as working:

        async def cancel() -> None:
            await stop.wait()
            working.cancel_scope.cancel()

        working.start_soon(cancel)
        await work()
        done = True
        working.cancel_scope.cancel()
    return done


# Seconds between two progress lines.
PROGRESS_INTERVAL = 10.0

# Seconds between two log lines about what the rate limit suppressed.
RATE_LIMIT_INTERVAL = 5.0

# Seconds that a shutdown may take in addition to the handlers' grace. All its waits have smaller limits.
SHUTDOWN_MARGIN = 30.0

# Seconds for the last write of the checkpoint.
CHECKPOINT_TIMEOUT = 3.0

# The maximum of events that are loaded after a start. This takes some seconds while streams are read.
MAX_HISTORY = 500_000

# Seconds over which the first comparisons after a start are spread: for each mailbox, and the maximum.
START_EACH = 0.02
START_SPREAD = 30.0
