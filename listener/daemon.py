"""The composition root: builds everything from the configuration, in one nursery, and ends it in order.

Start: journal, handlers, groups, those of the last time first. End: groups, what is kept of them, then what is in the
journal for the handlers, then these, then the journal.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial

import httpx
import structlog
import trio

from listener._version import __version__
from listener.access import AccessRule, AccessRules
from listener.affinity import Group, Placement
from listener.backoff import Backoff
from listener.catchup import CatchUp
from listener.census import Census, Sources
from listener.config import AccessOverride, Config, Exchange, Mailboxes
from listener.config.files import parse_list
from listener.config.values import parse_address, parse_sid
from listener.delivery import Delivery, Lane, Patience, Source
from listener.errors import ConfigError, Problem
from listener.event import MailboxEvent
from listener.ews.codes import Failure
from listener.ews.events import EventKind
from listener.ews.soap import Impersonation
from listener.exchange.auth import accounts
from listener.exchange.budget import Budgets
from listener.exchange.client import Access, ExchangeClient
from listener.exchange.discovery import Autodiscover
from listener.exchange.expansion import Expander
from listener.exchange.network import Network
from listener.group import GroupState, Policy
from listener.journal import Journal, Retention, sqlite
from listener.keeper import Keeper
from listener.log import open_audit, tell_repeated
from listener.roster import Roster
from listener.saved import Restored, last_heard, restored
from listener.scope import Attempt, Finding, Scope
from listener.service.attendant import Attendant
from listener.service.headline import headline
from listener.service.notify import Notifier
from listener.states import JournalStates
from listener.supervisor import GroupRunner, Wish

log = structlog.get_logger()

OpenJournal = Callable[[], AbstractAsyncContextManager[Journal]]
Door = Callable[["Daemon"], AbstractAsyncContextManager[None]]


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
        door: Door | None = None,
    ) -> None:
        self.config = config
        self.events = 0
        self.gaps = 0
        self._door = door or (lambda _: nullcontext())
        self.attendant = Attendant(notifier or Notifier(), self._headline)
        self._phase, self._stage = "Opening the journal and the handlers", "starting"
        self.journal: Journal | None = None
        self._open_journal = open_journal or partial(
            sqlite.open_journal, config.state_directory, keep=retention(config)
        )
        self.access = access(config)
        self.wish = wish(config)
        self.policy = policy(config)
        self.delivery = Delivery(tuple(Lane(source, patience(config, source.name)) for source in sources))
        self.discovery = discovery(config, self.access)
        self.scope = scope(config, self.access, self.discovery)
        self.census = census(config, expander(config, self.access, self.discovery), self._populate)
        known, sought = sorted_out(config, self.census.mailboxes)
        self.roster = Roster(
            known=known,
            sought=sought,
            kind_of=self.wish.access.kind_of,
            discovery=self.discovery,
            new_runner=self._new_runner,
            group_size=config.affinity.group_size,
            retry=self.policy.backoff,
            parked=self.policy.parked,
            refresh=config.affinity.refresh,
            gaps=self._note_gap,
            resumed=self._note_stream,
            left=self._forget,
            noted=self._note_change,
            unfilled=lambda: {} if self.catch_up is None else self.catch_up.unfilled(),
        )
        self.catch_up: CatchUp | None = None
        self._attempts: Sequence[Attempt] | None = None
        self.keeper: Keeper | None = None

    async def run(self, stop: trio.Event) -> None:
        """Listens until `stop` is set, and then ends in order.

        Raises ConfigError when the journal or a handler cannot be opened, or if the account reaches what it must not.
        """
        with open_audit(self.config.log.audit_file) as self.access.audit.logger:
            await self._run(stop)

    async def _run(self, stop: trio.Event) -> None:
        log.info("listener.started", version=__version__, mailboxes=self.roster.mailboxes)
        async with (
            self.attendant.at_hand(),
            self._open_journal() as journal,
            self._door(self),
            trio.open_nursery() as handlers,
        ):
            self.journal = self.attendant.heart = journal
            handlers.start_soon(JournalStates(journal).forget_strangers, self.roster.addresses)
            await self._recall(journal)
            if await unless(stop, self._check_scope) and await unless(
                stop, partial(handlers.start, self.delivery.run, journal)
            ):
                self.catch_up = self._new_catch_up(journal)
                self.keeper = Keeper(journal, self.roster)
                await self._remember(self.keeper)
                self._phase, self._stage = "", "listening"
                self.attendant.ready()
                await self._listen(self.catch_up, self.keeper, stop)
                await self.delivery.drain(self.config.shutdown.grace)
            handlers.cancel_scope.cancel()
        tell_repeated(everything=True)
        log.info("listener.stopped")

    async def _recall(self, journal: Journal) -> None:
        """Before anything begins: who was to be listened to when the daemon ended."""
        await self.census.recall(journal)
        self.roster.known, self.roster.sought = sorted_out(self.config, self.census.mailboxes)

    def _populate(self) -> None:
        """The census has changed."""
        self.roster.change(*sorted_out(self.config, self.census.mailboxes))

    async def _check_scope(self) -> None:
        """Raises ConfigError if the account reaches a mailbox that must refuse it, and may not start then."""
        if self.config.impersonation.if_not_refused == "refuse_to_start" and self.scope.mailboxes:
            self._attempts = await self.scope.prove()
            if reached := [each for each in self._attempts if each.finding is Finding.REACHED]:
                raise ConfigError(
                    [
                        Problem("impersonation.must_refuse", f"the account reaches {a.mailbox}")
                        for a in reached
                    ]
                )

    @property
    def stage(self) -> str:
        """One word for where it is: starting, listening or ending."""
        return self._stage

    async def change(self, config: Config, sources: Sequence[Source]) -> None:
        """Takes up another configuration, as far as that can be while it listens (listener/service/reload.py).

        Raises ConfigError if a handler cannot be opened; then nothing has changed.
        """
        lanes = {lane.name: lane for lane in self.delivery.lanes}
        await self.delivery.change(
            [
                lanes[source.name]
                if source.name in lanes and self._is_same(config, source.name)
                else Lane(source, patience(config, source.name))
                for source in sources
            ]
        )
        self.config, self.policy = config, policy(config)
        rules, anew = self.wish.access, wish(config)
        rules.default, rules.others = anew.access.default, anew.access.others  # the roster asks them, too
        self.wish = replace(anew, access=rules)
        self.access.budgets.change(config.exchange.concurrency)
        self.roster.retry, self.roster.parked = self.policy.backoff, self.policy.parked
        self.roster.refresh = config.affinity.refresh
        for runner in self.roster.runners.values():
            runner.wish, runner.state = self.wish, replace(runner.state, policy=self.policy)
        if self.catch_up is not None:
            self.catch_up.interval = config.catch_up.interval
        mailboxes = config.mailboxes
        self.census.expand = expander(config, self.access, self.discovery).expand
        self.census.change(census_sources(config), refresh=mailboxes.refresh, max_drop=mailboxes.max_drop)

    def _is_same(self, config: Config, handler: str) -> bool:
        """Whether a handler is, and is treated, as it was."""
        return config.handlers.get(handler) == self.config.handlers.get(handler) and patience(
            config, handler
        ) == patience(self.config, handler)

    def _new_catch_up(self, journal: Journal) -> CatchUp:
        kinds = frozenset(self.config.subscription.events)
        return CatchUp(
            ask=self.roster.way,
            states=JournalStates(journal),
            kinds=kinds,
            mode=self.config.catch_up.mode,
            interval=self.config.catch_up.interval,
            silent=self.roster.renew,
            # Most of a catch-up is waiting for streams that are late; how much is asked is the budget's affair.
            concurrency=64,
            sweepers=16,
            start_spread=min(START_SPREAD, START_EACH * self.roster.mailboxes),
        )

    async def _remember(self, keeper: Keeper) -> None:
        """Begins where the last process ended, as far as the configuration is still the same."""
        saved, heard = await keeper.load()
        roster, account = self.roster, self.access.auth
        places: dict[str, Placement | None] = dict.fromkeys(roster.sought)
        places |= {place.mailbox: place for place in roster.known}
        roster.restored = restored(
            saved,
            places,
            kind_of=self.wish.access.kind_of,
            maker=lambda url: self.wish.maker(account.of(url).scheme.account),
            wish=self.wish.of,
            size=self.config.affinity.group_size,
        )
        roster.begun, now = trio.current_time(), time.time()
        roster.well |= {
            mailbox: roster.begun - (now - moment)
            for mailbox, moment in last_heard(saved, heard, now).items()
            if mailbox in places
        }
        log.info(
            "listener.restored",
            mailboxes=sum(len(each.kept.subscriptions) for each in roster.restored),
            groups=len(roster.restored),
            abandoned=sum(len(each.kept.abandoned) for each in roster.restored),
        )

    def _note_change(self, group: str) -> None:
        if self.keeper is not None:
            self.keeper.note(group)

    def _note_gap(self, mailbox: str, since: float | None, reason: str) -> None:
        self.gaps += 1
        if self.catch_up is not None:
            self.catch_up.gap(mailbox, since, reason)

    def _note_stream(self, mailboxes: Sequence[str]) -> None:
        if self.catch_up is not None:
            self.catch_up.resume(mailboxes)

    def _forget(self, mailboxes: Sequence[str]) -> None:
        if self.catch_up is not None:
            for mailbox in mailboxes:
                self.catch_up.drop(mailbox)

    async def _publish(self, batch: Sequence[MailboxEvent]) -> None:
        """What came on a stream is safe in the journal before it counts as delivered."""
        await self.delivery.publish(batch)
        self.events += len(batch)
        if self.catch_up is not None:
            self.catch_up.note(batch)

    async def _listen(self, catch_up: CatchUp, keeper: Keeper, stop: trio.Event) -> None:
        """Keeps all groups at work until `stop` is set and they have ended."""
        async with trio.open_nursery() as groups:
            groups.start_soon(self.roster.run)
            async with trio.open_nursery() as meanwhile:
                meanwhile.start_soon(self._tell_progress)
                meanwhile.start_soon(self._sum_up)
                meanwhile.start_soon(catch_up.run)
                meanwhile.start_soon(self.census.run)
                meanwhile.start_soon(self.scope.watch, self._attempts)
                meanwhile.start_soon(keeper.run)
                await stop.wait()
                meanwhile.cancel_scope.cancel()
            log.info("listener.stopping", grace=self.config.shutdown.grace)
            self._phase, self._stage = "Ending", "ending"
            self.attendant.stopping()
            self.roster.stop(unsubscribe=self.config.shutdown.unsubscribe)
        with trio.move_on_after(LAST_WRITE):
            await keeper.save()

    def _headline(self) -> str:
        figures = None if self.journal is None else self.journal.figures
        return headline(
            phase=self._phase,
            mailboxes=self.roster.mailboxes,
            streaming=self.roster.streaming,
            parked=self.roster.waiting,
            missing=len(self.roster.missing),
            pause=self.access.budgets.pause,
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
        told = 0
        while True:
            await trio.sleep(PROGRESS)
            streaming, mailboxes = self.roster.streaming, self.roster.mailboxes
            if streaming != told or streaming < mailboxes - self.roster.waiting - len(self.roster.missing):
                log.info(
                    "listener.progress",
                    streaming=streaming,
                    mailboxes=mailboxes,
                    groups=len(self.roster.runners),
                    parked=self.roster.waiting,
                    missing=len(self.roster.missing),
                    concurrency=self.access.budgets.limit,
                    pause=round(self.access.budgets.pause, 3),
                )
                told = streaming

    def _new_runner(self, group: Group, roster: Roster, before: Restored | None = None, /) -> GroupRunner:
        client = ExchangeClient(group.ews_url, self.access, () if before is None else before.cookies)
        kept = None if before is None else before.kept
        state = GroupState.start(group.mailboxes, self.policy, kept)
        return GroupRunner(
            group, client, self.wish, self._publish, roster, state, well=roster.well, begun=roster.begun
        )


# Seconds between two lines of progress.
PROGRESS = 10.0

# Seconds between two looks at what the log has held back.
SUMMING = 5.0

# Seconds that the disk has at the end to take what is kept of groups.
LAST_WRITE = 3.0

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


def access(config: Config) -> Access:
    """What every request needs, from [exchange] and [auth]."""
    exchange = config.exchange
    network = Network(tls=exchange.tls_context(), proxy=proxy(exchange))
    return Access(
        auth=accounts(config, network),
        budgets=Budgets(exchange.concurrency),
        user_agent=exchange.user_agent,
        tls=network.tls,
        proxy=network.proxy,
        connect_timeout=exchange.connect_timeout,
        request_timeout=exchange.request_timeout,
    )


def proxy(exchange: Exchange) -> httpx.Proxy | None:
    """The proxy of [exchange], with what it wants to know of us."""
    if exchange.proxy is None:
        return None
    user, password = exchange.proxy_user, exchange.proxy_password
    return httpx.Proxy(
        exchange.proxy.get_secret_value(), auth=(user, password.reveal()) if user and password else None
    )


def wish(config: Config) -> Wish:
    """What is asked of Exchange, from [subscription], [affinity] and [stream]."""
    return Wish(
        version=config.exchange.version,
        access=access_rules(config),
        events=tuple(
            EventKind(f"{name.title().replace('_', '')}Event") for name in config.subscription.events
        ),
        impersonate_anchor_on_stream=config.affinity.impersonate_anchor_on_stream,
        window=round(config.stream.window / 60),
        silence=2 * config.stream.heartbeat,
        max_envelope=config.stream.max_envelope,
        subscribe_concurrency=config.affinity.subscribe_concurrency,
        directory=f"{config.exchange.autodiscover_url} {config.exchange.ews_url}",
    )


def discovery(config: Config, access: Access) -> Autodiscover:
    """Who tells where mailboxes live, from [exchange]."""
    exchange = config.exchange
    return Autodiscover(
        access,
        version=exchange.version,
        url=exchange.autodiscover_url,
        ews_url=exchange.ews_url,
        hosts=exchange.autodiscover_hosts,
    )


def expander(config: Config, access: Access, discovery: Autodiscover) -> Expander:
    """Who tells the members of distribution groups, from [mailboxes] and [exchange]."""
    expand_as, by = config.mailboxes.expand_as, config.mailboxes.impersonate_by
    return Expander(
        access,
        discovery,
        version=config.exchange.version,
        ews_url=config.exchange.ews_url,
        expand_as=None if expand_as is None else Impersonation(by, expand_as),
    )


def census(config: Config, expander: Expander, changed: Callable[[], None]) -> Census:
    """Who is to be listened to, from [mailboxes] and [[groups]]."""
    mailboxes = config.mailboxes
    return Census(
        sources=census_sources(config),
        expand=expander.expand,
        changed=changed,
        refresh=mailboxes.refresh,
        max_drop=mailboxes.max_drop,
    )


def census_sources(config: Config) -> Sources:
    """Where mailboxes come from; reads the file, if there is one."""
    mailboxes = config.mailboxes
    parse = partial(parse_list, normalise=parse_sid if mailboxes.impersonate_by == "SID" else parse_address)
    in_file: tuple[str, ...] = ()
    if mailboxes.file is not None:
        with suppress(OSError, ValueError):  # it was good a moment ago, when the configuration was loaded
            in_file = parse(mailboxes.file.read_text(encoding="utf-8-sig"))
    others = set(config.all_mailboxes).difference(mailboxes.addresses)
    inline = set(mailboxes.addresses).difference(in_file)
    return Sources(
        listed=tuple(mailbox for mailbox in config.all_mailboxes if mailbox in inline or mailbox in others),
        file=mailboxes.file,
        in_file=in_file,
        groups=mailboxes.distribution_groups,
        never=frozenset(config.impersonation.must_refuse),
        parse=parse,
    )


def scope(config: Config, access: Access, discovery: Autodiscover) -> Scope:
    """What the account must not reach, from [impersonation]."""

    async def places(mailboxes: Sequence[str]) -> Mapping[str, Placement | Failure]:
        known, sought = sorted_out(config, mailboxes)
        return {place.mailbox: place for place in known} | await discovery.discover(sought)

    impersonation = config.impersonation
    return Scope(
        mailboxes=impersonation.must_refuse,
        access=access,
        version=config.exchange.version,
        places=places,
        interval=impersonation.interval,
    )


def access_rules(config: Config) -> AccessRules:
    """How mailboxes are got at, from [mailboxes], its overrides and [subscription]."""

    def rule(section: Mailboxes | AccessOverride) -> AccessRule:
        own = section.folders if isinstance(section, AccessOverride) else None
        folders = own or config.subscription.folders
        return AccessRule(section.access, section.impersonate_by, None if folders == "all" else folders)

    others = {mailbox: rule(other) for other in config.mailboxes.overrides for mailbox in other.addresses}
    return AccessRules(rule(config.mailboxes), others)


def policy(config: Config) -> Policy:
    """The patience of groups, from [backoff]."""
    backoff = config.backoff
    return Policy(
        backoff=Backoff(backoff.first, backoff.factor, backoff.cap),
        parked=Backoff(backoff.parked_first, backoff.factor, backoff.parked_cap),
        flapping=Backoff(backoff.first, 2.0, min(backoff.cap, 15.0)),
    )


def patience(config: Config, handler: str) -> Patience:
    """The patience with one handler, from [delivery] and [handlers.NAME]."""
    own = config.handlers.get(handler)
    delivery = config.delivery if own is None else own.delivery(config.delivery)
    retry = Backoff(first=delivery.retry_first, factor=2.0, cap=delivery.retry_cap)
    return Patience(
        queue=delivery.queue,
        concurrency=delivery.concurrency,
        timeout=delivery.timeout,
        attempts=delivery.attempts,
        retry=retry,
    )


def retention(config: Config) -> Retention:
    """How much is kept, from [journal]."""
    return Retention(age=config.journal.age, size=config.journal.size)


def sorted_out(config: Config, mailboxes: Iterable[str]) -> tuple[tuple[Placement, ...], tuple[str, ...]]:
    """Those of the mailboxes whose place the configuration tells, and those that must be sought."""
    ews_url = config.exchange.ews_url or ""
    placed = {
        mailbox: Placement(group.ews_url or ews_url, group.name, mailbox)
        for group in config.groups
        for mailbox in group.mailboxes
    }
    wanted = dict.fromkeys(mailboxes)
    known = tuple(place for mailbox, place in placed.items() if mailbox in wanted)
    rest = tuple(mailbox for mailbox in wanted if mailbox not in placed)
    if config.exchange.autodiscover:
        return known, rest
    return (*known, *(Placement(ews_url, "", mailbox) for mailbox in rest)), ()
