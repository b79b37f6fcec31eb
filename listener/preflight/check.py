"""Preflight: tests servers, groups, the access to every mailbox, and must_deny mailboxes.

For each server, a few mailboxes are tested first, one at a time. If the server cannot be reached or rejects the
account, its other mailboxes are not tested: they would fail in the same way, and the account could be locked. The
remaining mailboxes are tested concurrently, within the throttle of the account.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from listener.access import AccessKind, AccessRules
from listener.build import access, access_rules, discovery, expander, scope, sorted_out
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
    """Result for one EWS URL, or for Autodiscover. After a failure, `stage` is the stage that failed."""

    url: str
    account: str
    failure: Failure | None = None
    autodiscover: bool = False

    @property
    def stage(self) -> str | None:
        return None if self.failure is None else stage_of(self.failure)


@dataclass(frozen=True, slots=True)
class MailboxCheck:
    """Result for one mailbox. It has no group if Autodiscover did not find it. `tried` is False if it was not tested,
    because its server had failed."""

    mailbox: str
    access: AccessKind
    group: Group | None = None
    failure: Failure | None = None
    tried: bool = True


@dataclass(slots=True)
class Report:
    """All results of a preflight."""

    servers: list[ServerCheck] = field(default_factory=list)
    groups: tuple[Group, ...] = ()
    mailboxes: list[MailboxCheck] = field(default_factory=list)
    expansions: dict[str, Failure | int] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    autodiscover_url: str = ""
    """The configured Autodiscover URL, or empty."""

    @property
    def unreachable(self) -> bool:
        """Return whether a server cannot be reached or rejects the account."""
        return any(server.failure for server in self.servers)

    @property
    def refused(self) -> bool:
        """Return whether a mailbox or distribution group failed, or a must_deny mailbox is not proved."""
        return (
            any(check.failure for check in self.mailboxes)
            or any(isinstance(result, Failure) for result in self.expansions.values())
            or any(attempt.finding is not Finding.REFUSED for attempt in self.attempts)
        )


async def check(config: Config, only: Sequence[str], progress: Progress) -> Report:
    """Test all mailboxes of the configuration, or `only` these.

    `progress` is called with the number of tested mailboxes and their total. Raises ConfigError if the audit log
    cannot be opened.
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
    """Return all mailboxes, including the members of distribution groups."""
    mailboxes = dict.fromkeys(config.all_mailboxes)
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
            excluded = config.impersonation.must_deny
            mailboxes |= dict.fromkeys(member for member in members.mailboxes if member not in excluded)
    return tuple(mailboxes)


async def _discover(
    config: Config, account: Access, rules: AccessRules, mailboxes: Sequence[str], report: Report
) -> list[Placement]:
    """Return the placements of the mailboxes. Add those that Autodiscover did not find to the report."""
    known, unknown = sorted_out(config, mailboxes)
    discovered = await discovery(config, account).discover(unknown)
    placements = list(known)
    failures = list[Failure]()
    for mailbox, result in discovered.items():
        if isinstance(result, Failure):
            failures.append(result)
            report.mailboxes.append(
                MailboxCheck(mailbox, rules.kind_of(mailbox), failure=result, tried=stage_of(result) is None)
            )
        else:
            placements.append(result)
    if (server_failure := next(filter(stage_of, failures), None)) is not None:
        url = config.exchange.autodiscover_url or ""
        name = account.auth.of(url).scheme.account
        report.servers.append(ServerCheck(url, name, server_failure, autodiscover=True))
    return [placement._replace(access=rules.kind_of(placement.mailbox)) for placement in placements]


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
        self._report_progress()
        async with trio.open_nursery() as nursery:
            for url, groups in by_url.items():
                nursery.start_soon(self._check_server, url, groups)

    async def _check_server(self, url: str, groups: Sequence[Group]) -> None:
        todo = [(mailbox, group) for group in groups for mailbox in group.mailboxes]
        name = self.account.auth.of(url).scheme.account
        async with open_probe(url, self.account, self.config.exchange.version) as probe:
            todo.reverse()  # pop() takes from the end
            failure = await self._check_first(probe, todo)
            self.report.servers.append(ServerCheck(url, name, failure))
            if failure is not None:
                for mailbox, group in todo:
                    self._add(mailbox, group, failure, tried=False)
                return
            async with trio.open_nursery() as nursery:
                for _ in range(min(self.config.exchange.concurrency, len(todo))):
                    nursery.start_soon(self._worker, probe, todo)

    async def _check_first(self, probe: Probe, todo: list[tuple[str, Group]]) -> Failure | None:
        """Test mailboxes one at a time until the server answers for one. Return the failure of the server, or None.

        Several mailboxes are tested, because an error may come from a single back-end server.
        """
        failure: Failure | None = None
        for _ in range(min(MAX_FIRST, len(todo))):
            mailbox, group = todo.pop()
            failure = await probe.check(mailbox, self.rules.of(mailbox), attempts=1)
            self._add(mailbox, group, failure)
            if failure is None or stage_of(failure) is None:
                return None
            if stage_of(failure) != "speak" or failure.verdict is Verdict.STOP:
                break
        return failure

    async def _worker(self, probe: Probe, todo: list[tuple[str, Group]]) -> None:
        while todo:
            mailbox, group = todo.pop()
            self._add(mailbox, group, await probe.check(mailbox, self.rules.of(mailbox)))

    def _add(self, mailbox: str, group: Group, failure: Failure | None, *, tried: bool = True) -> None:
        self.report.mailboxes.append(
            MailboxCheck(mailbox, self.rules.kind_of(mailbox), group, failure, tried)
        )
        self._report_progress()

    def _report_progress(self) -> None:
        self.progress(len(self.report.mailboxes), self.total)


def stage_of(failure: Failure) -> str | None:
    """Return the stage at which a request failed; None if the failure is about the mailbox only."""
    if failure.code in _STAGE:
        return _STAGE[failure.code]
    if failure.verdict is Verdict.CREDENTIALS:
        return "authenticate"
    unknown_status = failure.code.startswith("Http") and failure.code not in VERDICTS
    return "speak" if unknown_status or failure.verdict is Verdict.STOP else None


# Maximum number of mailboxes that are tested before a server counts as failed.
MAX_FIRST = 3

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
