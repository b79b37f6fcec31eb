"""Terminal view of a snapshot, for `ews-listener status` (pure)."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from listener.admin.snapshot import GroupStatus, HandlerStatus, MailboxProblem, Snapshot
from listener.text import printable

# Maximum number of rows. Rows with problems come first.
MAX_GROUPS = 20
MAX_PROBLEMS = 20
COLORS = {
    "streaming": "green", "running": "green", "listening": "green", "subscribing": "cyan", "starting": "cyan",
    "waiting": "yellow", "refused": "yellow", "missing": "yellow", "ending": "yellow", "stopping": "yellow",
    "suspended": "red", "broken": "red",
}  # fmt: skip


def render_status(it: Snapshot, previous: Snapshot | None = None) -> RenderableType:
    """Return the view of a snapshot. With the `previous` snapshot, it includes the event rate."""
    parts: list[RenderableType] = [_head(it, previous), *_warnings(it), _handlers(it), _groups(it)]
    if it.mailbox_problems:
        parts.append(_problems(it))
    return Group(*parts)


def duration(seconds: float) -> str:
    """Format a duration with at most two units: 45s, 12m 3s, 3h 20m, 2d 4h."""
    whole = max(0, int(seconds))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for index, (unit, size) in enumerate(units):
        if whole >= size:
            count, rest = divmod(whole, size)
            smaller = "" if index == 3 else f" {rest // units[index + 1][1]}{units[index + 1][0]}"
            return f"{count}{unit}{smaller}"
    return "0s"


def size(count: float) -> str:
    """Format a number of bytes with a suitable unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _head(it: Snapshot, previous: Snapshot | None) -> RenderableType:
    color = "green" if it.streaming == it.mailboxes else "red" if it.streaming > it.mailboxes else "yellow"
    rate = ""
    if previous is not None and it.time > previous.time:
        rate = f" ({(it.events - previous.events) / (it.time - previous.time):,.0f}/s)"
    first = [
        Text(f"ews-listener {printable(it.version)}", "bold"),
        _state(it.state),
        _pair("up", duration(it.time - it.started)),
        _pair("streaming", f"{it.streaming:,}/{it.mailboxes:,}", color),
        _pair("suspended", f"{it.suspended:,}", "red" if it.suspended else ""),
        _pair("events", f"{it.events:,}{rate}"),
    ]
    second = []
    if it.journal is not None:
        second.append(_pair("journal", f"{size(it.journal.size)} of {size(it.journal.limit)}"))
    if (gaps := it.catch_up) is not None:
        second.append(
            _pair("gaps", f"{gaps.gaps:,}, {gaps.open:,} open, {gaps.recovered:,} events recovered")
        )
    second += [
        _pair("requests", f"{server.host} {server.concurrency}/{server.most}") for server in it.servers[:4]
    ]
    second += [_pair(f"token {token.name}", duration(token.remaining)) for token in it.tokens]
    space = Text("   ")
    return Group(space.join(first), space.join(second))


def _pair(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{printable(name)} ", "dim"), (printable(value), style))


def _text(value: str) -> Text:
    """Return external text without markup and control characters."""
    return Text(printable(value))


def _warnings(it: Snapshot) -> list[Text]:
    warnings = []
    if not it.healthy:
        warnings.append("the journal writer is stuck")
    if it.journal is not None and it.journal.write_error is not None:
        warnings.append(f"cannot write the journal: {it.journal.write_error}")
    if it.journal is not None and it.journal.full:
        warnings.append("journal full: ingestion paused until handlers catch up")
    if it.streaming > it.mailboxes:
        warnings.append(
            f"{it.streaming - it.mailboxes} mailboxes have two streams: their events are duplicated"
        )
    warnings += [
        f"{server.host} requested a pause of {duration(server.pause)}"
        for server in it.servers
        if server.pause
    ]
    warnings += [f"the last reload was rejected: {problem}" for problem in it.reloads.problems]
    if it.reloads.pending:
        warnings.append(f"takes effect at the next start: {', '.join(it.reloads.pending)}")
    return [Text(f"! {printable(text)}", "bold yellow") for text in warnings]


def _table(*columns: str) -> Table:
    """Return a table. Columns are right-aligned with a fixed width; those with a "<" are left-aligned and shrink."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        name, text = column.lstrip("<"), column.startswith("<")
        table.add_column(
            name, justify="left" if text else "right", no_wrap=True, min_width=6 if text else len(name)
        )
    return table


def _state(state: str) -> Text:
    return Text(printable(state), COLORS.get(state, ""))


def _handlers(it: Snapshot) -> Table:
    table = _table("<handler", "<state", "lag", "delivered", "dead letters", "last delivered")
    for handler in it.handlers:
        table.add_row(*_handler(handler, it.time))
    return table


def _handler(handler: HandlerStatus, now: float) -> list[str | Text]:
    return [
        _text(handler.name),
        _state(handler.state),
        f"{handler.lag:,}",
        f"{handler.delivered:,}",
        f"{handler.dead_lettered:,}",
        "-" if handler.last_delivered is None else f"{duration(now - handler.last_delivered)} ago",
    ]


def _groups(it: Snapshot) -> Table:
    table = _table(
        "<group", "<anchor", "<state", "since", "streaming", "suspended", "events", "failures", "stream"
    )
    # Groups with mailboxes that do not stream come first.
    ordered = sorted(it.groups, key=lambda group: (group.streaming == group.mailboxes, group.name))
    for group in ordered[:MAX_GROUPS]:
        table.add_row(*_group(group, it.time))
    if len(ordered) > MAX_GROUPS:
        table.add_row(f"… {len(ordered) - MAX_GROUPS} more")
    return table


def _group(group: GroupStatus, now: float) -> list[str | Text]:
    state = _state(group.state)
    if group.pause:
        state.append(f" {duration(group.pause)}", "dim")
    return [
        _text(group.name),
        _text(group.anchor),
        state,
        duration(now - group.since),
        f"{group.streaming}/{group.mailboxes}",
        str(group.suspended),
        f"{group.events:,}",
        str(group.failures),
        "-" if group.stream_opened is None else duration(now - group.stream_opened),
    ]


def _problems(it: Snapshot) -> Table:
    table = _table("<mailbox", "<state", "<group", "retry in", "<reason")
    table.columns[-1].no_wrap = False
    ordered = sorted(it.mailbox_problems, key=lambda problem: (problem.state != "suspended", problem.mailbox))
    for problem in ordered[:MAX_PROBLEMS]:
        table.add_row(*_problem(problem))
    total = it.suspended + it.refused + it.missing
    if total > MAX_PROBLEMS:
        table.add_row(f"… {total - MAX_PROBLEMS:,} more")
    return table


def _problem(problem: MailboxProblem) -> list[str | Text]:
    return [
        _text(problem.mailbox),
        _state(problem.state),
        _text(problem.group or "-"),
        "-" if problem.retry is None else duration(problem.retry),
        _text(f"{problem.code}: {problem.text}" if problem.text else problem.code),
    ]
