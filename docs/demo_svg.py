"""Write docs/demo.svg: the terminal of `ews-listener demo` after 20 seconds of simulated traffic.

Run `make demo-svg`, or `python docs/demo_svg.py [FILE]`. The seed, the numbers of mailboxes and events, the width and
the names of styles are fixed. A new picture differs from the previous one only in a few figures, the times and the
latest events, so that a diff of the file can be reviewed.
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
from listener.demo.view import picture

PLAN = Plan(mailboxes=300, rate=200, seed=1, duration=None)
WIDTH = 104  # columns
EVENTS = 4000  # events that the demo's handler has received when the picture is taken


async def record(session: Session, plan: Plan, events: int) -> str:
    """Run the demo until its handler has received `events` events. Return the picture of that moment as SVG."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, stop)
        while len(session.probe.calls) < events:  # noqa: ASYNC110  (the probe has no event to wait for)
            await trio.sleep(0.01)
        assert session.daemon is not None
        assert session.generating_since is not None
        assert session.daemon.manager.streaming == plan.mailboxes
        rate = len(session.probe.calls) / (time.time() - session.generating_since)
        console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True)
        console.print(picture(session, rate))
        stop.set()
    # By default the names of styles contain a checksum of the content: each line would change with each figure.
    return console.export_svg(title="make demo", unique_id="demo")


def main(file: Path, plan: Plan = PLAN, events: int = EVENTS) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with TemporaryDirectory(prefix="ews-listener-demo-") as directory:
        session = Session(plan, Path(directory))
        svg = trio.run(record, session, plan, events)
    file.write_text("".join(f"{line.rstrip()}\n" for line in svg.splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("demo.svg"))
