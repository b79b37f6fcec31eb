"""Terminal view of the demo: groups, event rate and latest events."""

from __future__ import annotations

import sys
import time
from collections import deque
from urllib.parse import unquote

import trio
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from listener.demo.session import Session
from listener.event import MailboxEvent

REFRESH = 0.25
MAX_GROUPS = 16
COLORS = {"streaming": "green", "subscribing": "cyan", "waiting": "yellow", "stopping": "dim"}


async def run_with_view(session: Session, stop: trio.Event) -> None:
    """Run the session with a live view."""
    rates: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=round(2 / REFRESH))
    with Live(console=Console(), auto_refresh=False, screen=False, redirect_stderr=False) as live:
        async with trio.open_nursery() as nursery:

            async def refresh() -> None:
                while True:
                    rates.append((time.monotonic(), len(session.probe.calls)))
                    live.update(render(session, _rate(rates)), refresh=True)
                    await trio.sleep(REFRESH)

            nursery.start_soon(refresh)
            await session.run(stop)
            nursery.cancel_scope.cancel()


def render(session: Session, rate: float) -> RenderableType:
    """Return the current view. `rate` is in events per second."""
    daemon = session.daemon
    if daemon is None:
        return Text("Starting the simulated Exchange server …", style="dim")
    streaming, total = daemon.manager.streaming, session.plan.mailboxes
    head = Table.grid(padding=(0, 3))
    color = "green" if streaming == total else "yellow"
    head.add_row(
        Text("ews-listener demo", "bold"),
        Text.assemble(("mailboxes streaming ", "dim"), (f"{streaming}/{total}", color)),
        Text.assemble(("events ", "dim"), f"{len(session.probe.calls):,}"),
        Text.assemble(("per second ", "dim"), f"{rate:,.0f}"),
        Text.assemble(("faults ", "dim"), session.plan.faults),
    )
    end = Text("Press Ctrl-C to stop", "dim")
    return Group(head, _groups(session), _latest(session.probe.latest), end)


def _groups(session: Session) -> Table:
    assert session.daemon is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("group", "left"), ("anchor", "left"), ("mailboxes", "right"), ("state", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("events", justify="right")
    runners = list(session.daemon.runners.by_group.values())
    for runner in runners[:MAX_GROUPS]:
        phase = runner.state.phase
        table.add_row(
            runner.group.name,
            runner.state.anchor,
            f"{runner.mailboxes_streaming}/{len(runner.state.members)}",
            Text(phase, style=COLORS.get(phase, "")),
            f"{runner.events:,}",
        )
    if len(runners) > MAX_GROUPS:
        table.add_row(f"… {len(runners) - MAX_GROUPS} more", "", "", "", "")
    return table


def _latest(events: deque[MailboxEvent]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="latest events", title_style="dim", title_justify="left"
    )
    for name in ("time", "mailbox", "type", "subject"):
        table.add_column(name, no_wrap=True)
    for event in reversed(events):
        subject = event.subject or ""
        short = f"{subject[:6]}…{subject[-10:]}"
        table.add_row(
            event.time[11:23].rstrip("Z"), unquote(event.mailbox), event.type, Text(short, style="dim")
        )
    return table


def _rate(rates: deque[tuple[float, int]]) -> float:
    (then, before), (now, after) = rates[0], rates[-1]
    return (after - before) / (now - then) if now > then else 0.0


def print_summary(summary: dict[str, object]) -> None:
    """Print the summary as a table, and whether events were lost."""
    lost = summary["lost"]
    console = Console(file=sys.stdout, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in summary.items():
        table.add_row(Text(key, style="dim"), "-" if value is None else f"{value:,}")
    console.print(table)
    if lost == 0:
        console.print(Text("No event was lost.", "bold green"))
    else:
        console.print(Text(f"Lost events: {lost}.", "bold red"))
