"""Whether the account gets in everywhere: servers, groups, every mailbox, and those that must refuse it.

A mailbox of each server is tried first, alone. If that shows that the server cannot be reached or does not take
the account, its other mailboxes are not tried: it would be the same again, and an account can be locked. The rest is
tried side by side, as far as the budget of the account allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from listener.access import AccessKind, AccessRules
from listener.build import access, access_rules, configured_placements, discovery, expander, scope
from listener.config import Config
from listener.errors import ExchangeError
from listener.ews.codes import VERDICTS, Failure, Verdict
from listener.exchange.auth.lockout import REFUSALS
from listener.exchange.client import Access
from listener.groups.affinity import Group, groups
from listener.log import open_audit
from listener.mailboxes import members_of
from listener.placement import Placement
from listener.preflight.probe import Probe, open_probe
from listener.preflight.scope import Attempt, Finding

Progress = Callable[[int, int], None]

STAGES = ("resolve", "connect", "secure", "authenticate", "speak")
"""What must work before a server can say anything about a mailbox, in this order."""


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """One EWS URL, or Autodiscover (`url` empty); with a failure, `stage` is where it came to an end."""

    url: str
    account: str
    failure: Failure | None = None
    autodiscover: bool = False

    @property
    def stage(self) -> str | None:
        return None if self.failure is None else stage_of(self.failure)


@dataclass(frozen=True, slots=True)
class MailboxCheck:
    """One mailbox. Without a place it has no group; `tried` is False where its server had failed already."""

    mailbox: str
    access: AccessKind
    group: Group | None = None
    failure: Failure | None = None
    tried: bool = True


@dataclass(slots=True)
class Report:
    """All that was found out."""

    servers: list[ServerCheck] = field(default_factory=list)
    groups: tuple[Group, ...] = ()
    mailboxes: list[MailboxCheck] = field(default_factory=list)
    expansions: dict[str, Failure | int] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    autodiscover_url: str = ""
    """Where mailboxes without a group were asked for, if it is configured."""

    @property
    def unreachable(self) -> bool:
        """Whether a server cannot be reached, or does not take the account."""
        return any(server.failure for server in self.servers)

    @property
    def refused(self) -> bool:
        """Whether something about a mailbox is not as it should be."""
        return (
            any(check.failure for check in self.mailboxes)
            or any(isinstance(found, Failure) for found in self.expansions.values())
            or any(attempt.finding is not Finding.REFUSED for attempt in self.attempts)
        )


async def check(config: Config, only: Sequence[str], progress: Progress) -> Report:
    """Checks all mailboxes of the configuration, or `only` these. `progress` is told how many of how many are done.

    Raises ConfigError if the audit log cannot be written.
    """
    report = Report(autodiscover_url=config.exchange.autodiscover_url or "")
    account = access(config)
    account.auth.persist_refusals(config.state_directory / REFUSALS)
    with open_audit(config.log.audit_file) as account.audit.logger:
        rules = access_rules(config)
        mailboxes = only or await _expand(config, account, report)
        placed = await _discover(config, account, rules, mailboxes, report)
        report.groups = groups(placed, config.affinity.group_size)
        checks = _Checks(config, account, rules, report, progress, total=len(mailboxes))
        await checks.run()
        if config.impersonation.must_deny and not report.unreachable and not only:
            report.attempts = await scope(config, account, discovery(config, account)).prove()
    return report


async def _expand(config: Config, account: Access, report: Report) -> tuple[str, ...]:
    """All mailboxes, those of distribution groups too."""
    found = dict.fromkeys(config.all_mailboxes)
    expand = expander(config, account, discovery(config, account)).expand
    for group in config.mailboxes.distribution_groups:
        try:
            members = await members_of(group, expand)
        except ExchangeError as error:
            report.expansions[group] = error.failure
            if stage_of(error.failure):
                url = config.exchange.ews_url or ""
                name = account.auth.of(url).scheme.account
                report.servers.append(ServerCheck(url, name, error.failure))
                break
        else:
            report.expansions[group] = len(members.mailboxes)
            report.expansions |= members.failures
            never = config.impersonation.must_deny
            found |= dict.fromkeys(member for member in members.mailboxes if member not in never)
    return tuple(found)


async def _discover(
    config: Config, account: Access, rules: AccessRules, mailboxes: Sequence[str], report: Report
) -> list[Placement]:
    """Where the mailboxes live; those without a place are reported."""
    known, sought = configured_placements(config, mailboxes)
    found = await discovery(config, account).discover(sought)
    placed = list(known)
    for mailbox, place in found.items():
        if isinstance(place, Failure):
            report.mailboxes.append(
                MailboxCheck(mailbox, rules.kind_of(mailbox), failure=place, tried=stage_of(place) is None)
            )
        else:
            placed.append(place)
    failures = [place for place in found.values() if isinstance(place, Failure)]
    if (ill := next((f for f in failures if stage_of(f)), None)) is not None:
        url = config.exchange.autodiscover_url or ""
        name = account.auth.of(url).scheme.account
        report.servers.append(ServerCheck(url, name, ill, autodiscover=True))
    return [place._replace(access=rules.kind_of(place.mailbox)) for place in placed]


@dataclass(slots=True)
class _Checks:
    config: Config
    account: Access
    rules: AccessRules
    report: Report
    progress: Progress
    total: int

    async def run(self) -> None:
        by_url: defaultdict[str, list[Group]] = defaultdict(list)
        for group in self.report.groups:
            by_url[group.ews_url].append(group)
        self._tell_progress()
        async with trio.open_nursery() as nursery:
            for url, those in by_url.items():
                nursery.start_soon(self._server, url, those)

    async def _server(self, url: str, those: Sequence[Group]) -> None:
        todo = [(mailbox, group) for group in those for mailbox in group.mailboxes]
        name = self.account.auth.of(url).scheme.account
        async with open_probe(url, self.account, self.config.exchange.version) as probe:
            todo.reverse()
            failure = await self._first(probe, todo)
            self.report.servers.append(ServerCheck(url, name, failure))
            if failure is not None:
                for mailbox, group in todo:
                    self._done(mailbox, group, failure, tried=False)
                return
            async with trio.open_nursery() as nursery:
                for _ in range(min(self.config.exchange.concurrency, len(todo))):
                    nursery.start_soon(self._worker, probe, todo)

    async def _first(self, probe: Probe, todo: list[tuple[str, Group]]) -> Failure | None:
        """Tries some mailboxes, one after the other, until the server says something about one; why it does not.

        What may be an illness of one back end must be met with several.
        """
        failure: Failure | None = None
        for _ in range(min(FIRST, len(todo))):
            mailbox, group = todo.pop()
            failure = await probe.ask(mailbox, self.rules.of(mailbox), attempts=1)
            self._done(mailbox, group, failure)
            if failure is None or stage_of(failure) is None:
                return None
            if stage_of(failure) != "speak" or failure.verdict is Verdict.STOP:
                break
        return failure

    async def _worker(self, probe: Probe, todo: list[tuple[str, Group]]) -> None:
        while todo:
            mailbox, group = todo.pop()
            self._done(mailbox, group, await probe.ask(mailbox, self.rules.of(mailbox)))

    def _done(self, mailbox: str, group: Group, failure: Failure | None, *, tried: bool = True) -> None:
        self.report.mailboxes.append(
            MailboxCheck(mailbox, self.rules.kind_of(mailbox), group, failure, tried)
        )
        self._tell_progress()

    def _tell_progress(self) -> None:
        self.progress(len(self.report.mailboxes), self.total)


def stage_of(failure: Failure) -> str | None:
    """At which of the STAGES a request came to an end; None if the server said something about the mailbox."""
    if failure.code in _STAGE:
        return _STAGE[failure.code]
    if failure.verdict is Verdict.CREDENTIALS:
        return "authenticate"
    strange = failure.code.startswith("Http") and failure.code not in VERDICTS
    return "speak" if strange or failure.verdict is Verdict.STOP else None


# Mailboxes of a server that are tried before it is taken for ill.
FIRST = 3

_STAGE = {
    "NameNotResolved": "resolve",
    "ConnectFailed": "connect",
    "ConnectTimeout": "connect",
    "ConnectionReset": "connect",
    "ReadTimeout": "connect",
    "Http407": "connect",
    "TlsFailed": "secure",
    "SchemeNotOffered": "authenticate",
    "HandshakeBroken": "authenticate",
    "KerberosFailed": "authenticate",
    "NotSoap": "speak",
    "MalformedXml": "speak",
    "UnexpectedReply": "speak",
    "Http301": "speak",
    "Http302": "speak",
    "Http303": "speak",
    "Http307": "speak",
    "Http308": "speak",
    "Http404": "speak",
    "Http500": "speak",
    "Http502": "speak",
    "Http503": "speak",
    "Http504": "speak",
}
