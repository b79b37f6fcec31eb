"""A snapshot for people, as a picture on a terminal (pure)."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from listener.admin.snapshot import GroupStatus, HandlerStatus, MailboxProblem, Snapshot
from listener.text import printable

# Rows that a terminal is given at most; what is in trouble comes first.
MOST_GROUPS = 20
MAX_PROBLEMS = 20
COLOURS = {
    "streaming": "green", "running": "green", "listening": "green", "subscribing": "cyan", "starting": "cyan",
    "waiting": "yellow", "refused": "yellow", "missing": "yellow", "ending": "yellow", "stopping": "yellow",
    "suspended": "red", "broken": "red",
}  # fmt: skip


def picture(it: Snapshot, before: Snapshot | None = None) -> RenderableType:
    """What a terminal shows; with the snapshot `before`, how many events came a second."""
    parts: list[RenderableType] = [_head(it, before), *_warnings(it), _handlers(it), _groups(it)]
    if it.mailbox_problems:
        parts.append(_troubles(it))
    return Group(*parts)


def duration(seconds: float) -> str:
    """A duration in two units at most: 45s, 12m 3s, 3h 20m, 2d 4h."""
    whole = max(0, int(seconds))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for at, (unit, size) in enumerate(units):
        if whole >= size:
            count, rest = divmod(whole, size)
            smaller = "" if at == 3 else f" {rest // units[at + 1][1]}{units[at + 1][0]}"
            return f"{count}{unit}{smaller}"
    return "0s"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _head(it: Snapshot, before: Snapshot | None) -> RenderableType:
    colour = "green" if it.streaming == it.mailboxes else "red" if it.streaming > it.mailboxes else "yellow"
    rate = ""
    if before is not None and it.time > before.time:
        rate = f" ({(it.events - before.events) / (it.time - before.time):,.0f}/s)"
    first = [
        Text(f"ews-listener {printable(it.version)}", "bold"),
        _state(it.state),
        _pair("up", duration(it.time - it.started)),
        _pair("streaming", f"{it.streaming:,}/{it.mailboxes:,}", colour),
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
    """What others said or named: no markup, and nothing that a terminal obeys."""
    return Text(printable(value))


def _warnings(it: Snapshot) -> list[Text]:
    said = []
    if not it.healthy:
        said.append("the journal's writer stands still")
    if it.journal is not None and it.journal.write_error is not None:
        said.append(f"the journal cannot be written: {it.journal.write_error}")
    if it.journal is not None and it.journal.full:
        said.append("the journal is full, nothing new is taken in")
    if it.streaming > it.mailboxes:
        said.append(f"{it.streaming - it.mailboxes} mailboxes stream twice: their events come twice")
    said += [
        f"{server.host} asks for a pause of {duration(server.pause)}" for server in it.servers if server.pause
    ]
    said += [f"the last reload was refused: {problem}" for problem in it.reloads.problems]
    if it.reloads.pending:
        said.append(f"takes effect at the next start: {', '.join(it.reloads.pending)}")
    return [Text(f"! {printable(text)}", "bold yellow") for text in said]


def _table(*columns: str) -> Table:
    """Columns of numbers stand to the right and keep their width; those that begin with "<" give way."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        name, text = column.lstrip("<"), column.startswith("<")
        table.add_column(
            name, justify="left" if text else "right", no_wrap=True, min_width=6 if text else len(name)
        )
    return table


def _state(state: str) -> Text:
    return Text(printable(state), COLOURS.get(state, ""))


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
    # Those in trouble first.
    ordered = sorted(it.groups, key=lambda group: (group.streaming == group.mailboxes, group.name))
    for group in ordered[:MOST_GROUPS]:
        table.add_row(*_group(group, it.time))
    if len(ordered) > MOST_GROUPS:
        table.add_row(f"… {len(ordered) - MOST_GROUPS} more")
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


def _troubles(it: Snapshot) -> Table:
    table = _table("<mailbox", "<state", "<group", "again in", "<why")
    table.columns[-1].no_wrap = False
    ordered = sorted(
        it.mailbox_problems, key=lambda write_error: (write_error.state != "suspended", write_error.mailbox)
    )
    for write_error in ordered[:MAX_PROBLEMS]:
        table.add_row(*_mailbox_problem(write_error))
    whole = it.suspended + it.refused + it.missing
    if whole > MAX_PROBLEMS:
        table.add_row(f"… {whole - MAX_PROBLEMS:,} more")
    return table


def _mailbox_problem(write_error: MailboxProblem) -> list[str | Text]:
    return [
        _text(write_error.mailbox),
        _state(write_error.state),
        _text(write_error.group or "-"),
        "-" if write_error.retry is None else duration(write_error.retry),
        _text(f"{write_error.code}: {write_error.text}" if write_error.text else write_error.code),
    ]
