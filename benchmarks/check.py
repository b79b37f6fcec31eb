"""Measure how many mailboxes per second `check --connect` tests, with a server that allows 27 concurrent requests.

`python benchmarks/check.py [DIRECTORY]`. The simulator is a separate process. It answers further requests with
ErrorServerBusy and asks the account to wait a second. [exchange] concurrency exceeds the limit, so that this happens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import structlog
import trio

from listener.config import load
from listener.preflight.check import check as preflight

COUNT = 5000
ALLOWED = 27
CONCURRENCY = 40


async def main(where: Path) -> None:
    with tempfile.TemporaryDirectory(dir=where) as directory:
        config = Path(directory) / "config.toml"
        options = ["--mailboxes", str(COUNT), "--rate", "0", "--write-config", str(config)]
        command = [sys.executable, "-m", "listener", "simulate", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as simulator:
            assert simulator.stdout is not None
            try:
                addresses = json.loads(simulator.stdout.readline())
                order = {"kind": "throttled", "seconds": 3600, "concurrency": ALLOWED}
                urllib.request.urlopen(
                    f"{addresses['control_url']}/faults", json.dumps(order).encode()
                ).close()
                text = config.read_text().replace("[auth]", f"concurrency = {CONCURRENCY}\n[auth]")
                config.write_text(text)
                started_at = time.perf_counter()
                report = await preflight(load(config), (), lambda _done, _total: None)
                seconds = time.perf_counter() - started_at
            finally:
                simulator.kill()
    good = sum(check.failure is None for check in report.mailboxes)
    print(f"{good} of {COUNT} mailboxes in {seconds:.1f} s: {COUNT / seconds:,.0f} mailboxes/s", flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    trio.run(main, Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()))
