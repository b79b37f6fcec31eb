"""Measure how fast a daemon with 10,000 mailboxes answers status requests, and how long they block its event loop.

`python benchmarks/status.py [DIRECTORY]`. The daemon is complete, without connections to Exchange. Requests use its
Unix socket, while a task measures how late the event loop wakes it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx
import structlog
import trio

from listener.config import parse
from listener.daemon import open_daemon
from listener.operations import Operations

COUNT = 10_000
TIMES = 20
SUSPENDED = 50  # in each group


async def main(where: Path) -> None:
    with tempfile.TemporaryDirectory(dir=where) as directory:
        names = [f"user{number:05}@contoso.example" for number in range(COUNT)]
        document = {
            "exchange": {"ews_url": "https://mail.contoso.example/EWS/Exchange.asmx"},
            "auth": {"user": "u", "password": "p"},
            "groups": [{"name": "site", "mailboxes": names}],
            "handlers": {"log": {"use": "log"}},
        }
        config = parse(document, Path(directory), {})
        config.state_directory.mkdir()
        async with open_daemon(config, []) as daemon:
            async with trio.open_nursery() as nursery:
                daemon.manager._nursery = nursery
                daemon.manager.change(daemon.manager.known, ())
                for runner in daemon.runners.by_group.values():
                    members = tuple(
                        replace(member, suspended=True)
                        if at < SUSPENDED
                        else replace(member, subscription=f"id-{at}")
                        for at, member in enumerate(runner.state.members)
                    )
                    runner._context.state = replace(runner.state, members=members)
                # The groups keep this state: stop them before they send a request.
                nursery.cancel_scope.cancel()
            async with Operations(daemon, lambda: (config, [])).at_hand():
                for path in ("/status.json", "/metrics"):
                    seconds, delay = await measure(config.status_socket, path)
                    print(
                        f"{path}: {seconds * 1000:.1f} ms (median), event loop delay {delay * 1000:.1f} ms at most",
                        flush=True,
                    )


async def measure(socket: Path, path: str) -> tuple[float, float]:
    """Return the median seconds of a request, and the maximum delay of the event loop in seconds."""
    delay = 0.0

    async def measure_delay() -> None:
        nonlocal delay
        while True:
            started_at = time.perf_counter()
            await trio.sleep(0.001)
            delay = max(delay, time.perf_counter() - started_at - 0.001)

    durations = []
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(socket))) as client:
        await client.get(f"http://x{path}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(measure_delay)
            for _ in range(TIMES):
                started_at = time.perf_counter()
                answer = (await client.get(f"http://x{path}")).raise_for_status()
                durations.append(time.perf_counter() - started_at)
                assert len(answer.content) > 500
            nursery.cancel_scope.cancel()
    return median(durations), delay


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    sys.setswitchinterval(0.0002)
    trio.run(main, Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()))
