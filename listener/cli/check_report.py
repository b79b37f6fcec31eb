"""Report of `ews-listener check --connect`, as text and as JSON."""

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

MAX_LISTED = 50
"""Up to this number of mailboxes, all are listed. Above it, only those with a failure are."""


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Return a function that reports progress: the number of checked mailboxes, and the total."""
    if not shown:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("checking mailboxes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("mailboxes", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


# --- JSON


def as_json(report: Report) -> dict[str, Any]:
    """Return the keys that --connect adds. docs/CLI.md lists them."""
    return {
        "ok": not (report.unreachable or report.refused),
        "servers": [
            {
                "url": server.url,
                "account": server.account,
                "ok": server.failure is None,
                "stage": server.stage,
            }
            | _explanation(server.failure, _server_remedy(server))
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
            {"group": name, "ok": isinstance(result, int)}
            | (
                {"members": result}
                if isinstance(result, int)
                else _explanation(result, remedy(result, mailbox=name))
            )
            for name, result in report.expansions.items()
        ],
        "checked": [
            {
                "mailbox": check.mailbox,
                "access": check.access,
                "group": check.group and check.group.name,
                "ok": check.failure is None,
                "tried": check.tried,
            }
            | _explanation(check.failure, _mailbox_remedy(report, check))
            for check in _sorted_mailboxes(report)
        ],
        "must_deny": [
            {"mailbox": attempt.mailbox, "finding": str(attempt.finding)}
            | ({} if attempt.finding is Finding.REFUSED else _attempt_details(attempt))
            for attempt in report.attempts
        ],
    }


def _explanation(failure: Failure | None, advice: Remedy) -> dict[str, object]:
    if failure is None:
        return {}
    cause, fix = advice
    keys: dict[str, object] = {"code": failure.code, "text": failure.text, "cause": cause, "fix": fix}
    return keys | ({"held": round(seconds)} if (seconds := _blocked_for(failure)) else {})


def _attempt_details(attempt: Attempt) -> dict[str, object]:
    """Return what was tried on a must_deny mailbox, and the result."""
    details: dict[str, object] = {
        "access": attempt.access,
        "server": attempt.server,
        "operation": attempt.operation,
        "folder": attempt.folder,
    }
    failure = attempt.failure
    if failure is None:
        return details
    return details | _explanation(failure, remedy(failure, mailbox=attempt.mailbox))


def _server_remedy(server: ServerCheck) -> Remedy:
    if server.failure is None:
        return Remedy("")
    return remedy(server.failure, account=server.account, url=server.url, autodiscover=server.autodiscover)


def _mailbox_remedy(report: Report, check: MailboxCheck, mailbox: str | None = None) -> Remedy:
    """Return the remedy for a mailbox. `mailbox` is a placeholder for its address."""
    if check.failure is None:
        return Remedy("")
    name = check.mailbox if mailbox is None else mailbox
    account, group = _account(report, check), check.group
    url = report.autodiscover_url if group is None else group.ews_url
    return remedy(check.failure, mailbox=name, account=account, url=url, autodiscover=group is None)


def _blocked_for(failure: Failure) -> float | None:
    """Return the seconds during which the lockout protection does not use the rejected credentials again."""
    return failure.wait if failure.verdict is Verdict.CREDENTIALS else None


def _account(report: Report, check: MailboxCheck) -> str:
    """Return the account that accessed a mailbox."""
    url = check.group.ews_url if check.group else ""
    return next((server.account for server in report.servers if server.url == url), "SERVICE")


def _sorted_mailboxes(report: Report) -> list[MailboxCheck]:
    return sorted(report.mailboxes, key=lambda check: check.mailbox)


# --- text


def print_report(report: Report) -> None:
    """Print tables on standard output, then each failure with its cause and fix."""
    # Output to a pipe or file is not folded to the width of a terminal.
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(_servers(report.servers))
    if report.groups:
        console.print(_groups(report))
    if report.expansions:
        console.print(_expansions(report))
    if len(report.mailboxes) <= MAX_LISTED:
        console.print(_mailboxes(report))
    failed = sum(check.failure is not None for check in report.mailboxes)
    console.print(f"{len(report.mailboxes) - failed} of {len(report.mailboxes)} mailboxes can be reached.")
    for attempt in report.attempts:
        for line in _attempt_lines(attempt):
            console.print(_cell(line), soft_wrap=True)
    for line in _failures(report):
        console.print(_cell(line), soft_wrap=True)


def _cell(text: str) -> Text:
    """Return external text without markup and control characters, and of limited length."""
    return Text(printable(shortened(text, LONGEST_REASON)))


def _servers(servers: list[ServerCheck]) -> Table:
    table = Table()
    for name in ("server", "account"):
        table.add_column(name, overflow="fold")
    for stage in STAGES:
        table.add_column(stage, no_wrap=True)
    for server in servers:
        passed = len(STAGES) if server.stage is None else STAGES.index(server.stage)
        marks = ["ok" if at < passed else "FAIL" if at == passed else "" for at in range(len(STAGES))]
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
    for name, result in report.expansions.items():
        table.add_row(_cell(name), _cell(str(result) if isinstance(result, int) else result.code))
    return table


def _mailboxes(report: Report) -> Table:
    table = Table("mailbox", "access", "group", "result")
    for check in _sorted_mailboxes(report):
        result = "ok" if check.failure is None else check.failure.code
        row = (check.mailbox, check.access, check.group.name if check.group else "", result)
        table.add_row(*map(_cell, row))
    return table


def _attempt_lines(attempt: Attempt) -> Iterator[str]:
    """Return the result for a must_deny mailbox."""
    mailbox = attempt.mailbox
    match attempt.finding:
        case Finding.REFUSED:
            yield f"{mailbox} denies access to the account, as must_deny requires."
        case Finding.REACHED:
            yield f"FAIL  {mailbox}   the account can access this must_deny mailbox"
            yield f"      Proof: {attempt.proof}."
            if attempt.access == "delegate":
                yield "      Fix: remove the account's permissions on the mailbox"
            else:
                yield "      Fix: narrow the scope of the role assignment"
        case Finding.NOT_PROVED:
            yield f"FAIL  {mailbox}   must_deny could not be verified ({attempt.failure})"
            yield f"      Tried: {attempt.proof}."


def _failures(report: Report) -> Iterator[str]:
    """Return the text of all failures. Mailboxes with the same failure and remedy share one entry."""
    for server in report.servers:
        if server.failure is not None:
            prefix = "Autodiscover" if server.autodiscover else ""
            yield from _failure_lines(
                " ".join(filter(None, [prefix, server.url])), server.failure, _server_remedy(server)
            )
    for name, result in report.expansions.items():
        if isinstance(result, Failure):
            yield from _failure_lines(name, result, remedy(result, mailbox=name))
    reported = {(server.url, server.failure.code) for server in report.servers if server.failure}
    similar: defaultdict[tuple[str, Remedy], list[MailboxCheck]] = defaultdict(list)
    for check in _sorted_mailboxes(report):
        url = check.group.ews_url if check.group else ""
        if check.failure is not None and check.tried and (url, check.failure.code) not in reported:
            similar[check.failure.code, _mailbox_remedy(report, check, "MAILBOX")].append(check)
    for checks in similar.values():
        first, count = checks[0], len(checks)
        assert first.failure is not None
        listed = ", ".join(check.mailbox for check in checks[:MAX_LISTED])
        more = f" and {count - MAX_LISTED} more" if count > MAX_LISTED else ""
        advice = _mailbox_remedy(report, first, None if count == 1 else "MAILBOX")
        yield from _failure_lines(f"{listed}{more}", first.failure, advice)


def _failure_lines(subject: str, failure: Failure, advice: Remedy) -> Iterator[str]:
    yield ""
    yield f"FAIL  {subject}   {failure.code}"
    text = () if excerpt(failure.text) in advice.cause else (failure.text,)
    yield from (f"      {line}" for line in (*text, advice.cause) if line)
    first, *more = re.split(r"; (?=\d\. )", advice.fix)
    if first:
        yield f"      Fix: {first}"
    yield from (f"           {step}" for step in more)
    if seconds := _blocked_for(failure):
        yield (
            f"      Lockout protection: these credentials are not used again for {format_duration(round(seconds))}. "
            "Other credentials are used at once."
        )
        yield f"      To use these credentials now, delete {REFUSALS} in the state directory."
