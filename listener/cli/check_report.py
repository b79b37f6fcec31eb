"""What `ews-listener check --connect` found, for people and for machines."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from listener.config.values import format_duration
from listener.ews.codes import Failure, Verdict
from listener.ews.xml import excerpt
from listener.exchange.auth.lockout import REFUSALS
from listener.preflight.check import STAGES, MailboxCheck, Report, ServerCheck
from listener.preflight.remedies import Remedy, remedy
from listener.preflight.scope import Attempt, Finding
from listener.text import LONGEST_REASON, printable, shortened

FEW = 50
"""So many mailboxes are listed one by one; of more, only those that something is the matter with."""


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A function to tell how many mailboxes of how many are done."""
    if not shown:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("checking mailboxes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("mailboxes", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


# --- for machines


def as_json(report: Report) -> dict[str, Any]:
    """The keys that --connect adds; docs/CLI.md lists them."""
    return {
        "ok": not (report.unreachable or report.refused),
        "servers": [
            {
                "url": server.url,
                "account": server.account,
                "ok": server.failure is None,
                "stage": server.stage,
            }
            | _why(server.failure, _advice_of_server(server))
            for server in report.servers
        ],
        "groups": [
            {
                "name": group.name,
                "url": group.ews_url,
                "access": group.access,
                "anchor": group.mailboxes[0],
                "mailboxes": list(group.mailboxes),
            }
            for group in report.groups
        ],
        "distribution_groups": [
            {"group": name, "ok": isinstance(found, int)}
            | ({"members": found} if isinstance(found, int) else _why(found, remedy(found, mailbox=name)))
            for name, found in report.expansions.items()
        ],
        "checked": [
            {
                "mailbox": check.mailbox,
                "access": check.access,
                "group": check.group and check.group.name,
                "ok": check.failure is None,
                "tried": check.tried,
            }
            | _why(check.failure, _advice(report, check))
            for check in _in_order(report)
        ],
        "must_deny": [
            {"mailbox": attempt.mailbox, "finding": str(attempt.finding)}
            | ({} if attempt.finding is Finding.REFUSED else _tried(attempt))
            for attempt in report.attempts
        ],
    }


def _why(failure: Failure | None, advice: Remedy) -> dict[str, object]:
    if failure is None:
        return {}
    cause, fix = advice
    found: dict[str, object] = {"code": failure.code, "text": failure.text, "cause": cause, "fix": fix}
    return found | ({"held": round(held)} if (held := _held(failure)) else {})


def _tried(attempt: Attempt) -> dict[str, object]:
    """What was tried on a mailbox that must refuse, and what came of it."""
    tried = {
        "access": attempt.access,
        "server": attempt.server,
        "operation": attempt.operation,
        "folder": attempt.folder,
    }
    failure = attempt.failure
    return tried | ({} if failure is None else _why(failure, remedy(failure, mailbox=attempt.mailbox)))


def _advice_of_server(server: ServerCheck) -> Remedy:
    if server.failure is None:
        return Remedy("")
    return remedy(server.failure, account=server.account, url=server.url, autodiscover=server.autodiscover)


def _advice(report: Report, check: MailboxCheck, mailbox: str | None = None) -> Remedy:
    """The advice for a mailbox, with its address or this word in place of it."""
    if check.failure is None:
        return Remedy("")
    name = check.mailbox if mailbox is None else mailbox
    account, group = _account(report, check), check.group
    url = report.autodiscover_url if group is None else group.ews_url
    return remedy(check.failure, mailbox=name, account=account, url=url, autodiscover=group is None)


def _held(failure: Failure) -> float | None:
    """Seconds for which refused credentials are not tried again."""
    return failure.wait if failure.verdict is Verdict.CREDENTIALS else None


def _account(report: Report, check: MailboxCheck) -> str:
    """Who tried to get into a mailbox."""
    url = check.group.ews_url if check.group else ""
    return next((server.account for server in report.servers if server.url == url), "SERVICE")


def _in_order(report: Report) -> list[MailboxCheck]:
    return sorted(report.mailboxes, key=lambda check: check.mailbox)


# --- for people


def show(report: Report) -> None:
    """Prints tables on standard output, and what is the matter with what mends it."""
    # Where nobody looks at it, nothing is folded to fit.
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(_servers(report.servers))
    if report.groups:
        console.print(_groups(report))
    if report.expansions:
        console.print(_expansions(report))
    if len(report.mailboxes) <= FEW:
        console.print(_mailboxes(report))
    failed = sum(check.failure is not None for check in report.mailboxes)
    console.print(f"{len(report.mailboxes) - failed} of {len(report.mailboxes)} mailboxes can be reached.")
    for attempt in report.attempts:
        console.print(_cell(_attempt_line(attempt)), soft_wrap=True)
    for line in _matters(report):
        console.print(_cell(line), soft_wrap=True)


def _cell(text: str) -> Text:
    """What a server said, or somebody named: no markup, bounded, and nothing that a terminal obeys."""
    return Text(printable(shortened(text, LONGEST_REASON)))


def _servers(servers: list[ServerCheck]) -> Table:
    table = Table()
    for name in ("server", "account"):
        table.add_column(name, overflow="fold")
    for stage in STAGES:
        table.add_column(stage, no_wrap=True)
    for server in servers:
        reached = len(STAGES) if server.stage is None else STAGES.index(server.stage)
        marks = ["yes" if at < reached else "NO" if at == reached else "" for at in range(len(STAGES))]
        table.add_row(*map(_cell, (server.url or "Autodiscover", server.account, *marks)))
    return table


def _groups(report: Report) -> Table:
    table = Table("group", "access", "mailboxes", "anchor", "server")
    for group in report.groups:
        row = (group.name, group.access, str(len(group.mailboxes)), group.mailboxes[0], group.ews_url)
        table.add_row(*map(_cell, row))
    return table


def _expansions(report: Report) -> Table:
    table = Table("distribution group", "mailboxes")
    for name, found in report.expansions.items():
        table.add_row(_cell(name), _cell(str(found) if isinstance(found, int) else found.code))
    return table


def _mailboxes(report: Report) -> Table:
    table = Table("mailbox", "access", "group", "")
    for check in _in_order(report):
        told = "reached" if check.failure is None else check.failure.code
        row = (check.mailbox, check.access, check.group.name if check.group else "", told)
        table.add_row(*map(_cell, row))
    return table


def _attempt_line(attempt: Attempt) -> str:
    mailbox = attempt.mailbox
    match attempt.finding:
        case Finding.REFUSED:
            return f"{mailbox} must refuse the account, and does."
        case Finding.REACHED:
            fix = (
                "take its permissions on the mailbox away"
                if attempt.access == "delegate"
                else "narrow the scope of the role assignment"
            )
            return f"{mailbox} must refuse the account, and DOES NOT: {fix}. Proof: {attempt.proof}."
    return f"{mailbox} must refuse the account: not proved ({attempt.failure}). Tried: {attempt.proof}."


def _matters(report: Report) -> Iterator[str]:
    """What is the matter, once for all mailboxes that have it in common."""
    for server in report.servers:
        if server.failure is not None:
            what = "Autodiscover" if server.autodiscover else ""
            yield from _matter(
                " ".join(filter(None, [what, server.url])), server.failure, _advice_of_server(server)
            )
    for name, found in report.expansions.items():
        if isinstance(found, Failure):
            yield from _matter(name, found, remedy(found, mailbox=name))
    said = {(server.url, server.failure.code) for server in report.servers if server.failure}
    alike: defaultdict[tuple[str, Remedy], list[MailboxCheck]] = defaultdict(list)
    for check in _in_order(report):
        url = check.group.ews_url if check.group else ""
        if check.failure is not None and check.tried and (url, check.failure.code) not in said:
            alike[check.failure.code, _advice(report, check, "MAILBOX")].append(check)
    for checks in alike.values():
        first, count = checks[0], len(checks)
        assert first.failure is not None
        named = ", ".join(check.mailbox for check in checks[:FEW])
        more = f" and {count - FEW} more" if count > FEW else ""
        advice = _advice(report, first, None if count == 1 else "MAILBOX")
        yield from _matter(f"{named}{more}", first.failure, advice)


def _matter(who: str, failure: Failure, advice: Remedy) -> Iterator[str]:
    yield ""
    yield f"FAIL  {who}   {failure.code}"
    shown = () if excerpt(failure.text) in advice.cause else (failure.text,)
    yield from (f"      {line}" for line in (*shown, advice.cause) if line)
    first, *more = re.split(r"; (?=\d\. )", advice.fix)
    if first:
        yield f"      Fix: {first}"
    yield from (f"           {step}" for step in more)
    if held := _held(failure):
        yield (
            f"      These credentials are not tried again for {format_duration(round(held))}, so that the account is "
            "not locked. Other credentials are tried at once."
        )
        yield f"      To try these credentials now, delete {REFUSALS} in the state directory."
