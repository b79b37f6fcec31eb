"""Write docs/demo.svg: the terminal of `ews-listener demo` after 20 seconds of simulated traffic.

Run `make demo-svg`, or `python docs/demo_svg.py [FILE [MAILBOXES [EVENTS]]]`. The picture shows the moment at which
the handler has received EVENTS events. Seed, width and the names of styles are fixed: a new picture differs from the
previous one only in a few figures, the times and the latest events. So its diff can be reviewed.
"""

import io
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
import trio
from rich.console import Console

from listener.demo.session import Plan, Session
from listener.demo.view import render

FILE = Path(__file__).with_name("demo.svg")
WIDTH = 104  # columns


async def record(session: Session, events: int) -> str:
    """Run the demo until its handler has received `events` events. Return the picture of that moment as SVG."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, stop)
        while len(session.probe.calls) < events:  # noqa: ASYNC110  (the probe has no event to wait for)
            await trio.sleep(0.01)
        assert session.daemon is not None
        assert session.generating_since is not None
        assert session.daemon.manager.streaming == session.plan.mailboxes
        rate = len(session.probe.calls) / (time.time() - session.generating_since)
        console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True)
        console.print(render(session, rate))
        stop.set()
    # By default the names of styles contain a checksum of the content: each line would change with each figure.
    return console.export_svg(title="make demo", unique_id="demo")


def main(file: str | Path = FILE, mailboxes: str = "300", events: str = "4000") -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    plan = Plan(mailboxes=int(mailboxes), rate=200, seed=1, duration=None)
    with TemporaryDirectory(prefix="ews-listener-demo-") as directory:
        svg = trio.run(record, Session(plan, Path(directory)), int(events))
    Path(file).write_text("".join(f"{line.rstrip()}\n" for line in svg.splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:4])
