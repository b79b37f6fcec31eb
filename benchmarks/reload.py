"""Measure a reload that adds mailboxes: duration and requests, with real processes and sockets.

`python benchmarks/reload.py [MAILBOXES [ADDED]]`, 2000 and 100 by default. The duration of the reload is that of the
command `ews-listener reload`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from restart import LISTENER, DaemonProcess, start_simulator


def main(mailboxes: int, added: int) -> None:
    """Print the duration of the reload and its requests."""
    with tempfile.TemporaryDirectory() as name, start_simulator(Path(name), mailboxes + added) as simulator:
        directory = Path(name)
        addresses = (directory / "mailboxes.txt").read_text().splitlines()
        (directory / "mailboxes.txt").write_text("\n".join(addresses[:mailboxes]))
        daemon = DaemonProcess(directory)
        daemon.wait_until(lambda: simulator.state()["mailboxes_streaming"] == mailboxes)
        before = simulator.request_counts()
        (directory / "mailboxes.txt").write_text("\n".join(addresses))
        started_at = time.monotonic()
        config = str(directory / "config.toml")
        subprocess.run([*LISTENER, "reload", "--config", config], check=True, stdout=subprocess.DEVNULL)
        reload = time.monotonic() - started_at
        daemon.wait_until(lambda: simulator.state()["mailboxes_streaming"] == mailboxes + added)
        all_streaming = time.monotonic() - started_at
        now = simulator.request_counts()
        print(f"{mailboxes} mailboxes in {len(simulator.state()['streams'])} groups, {added} added:")
        print(f"  reload        {1000 * reload:5.0f} ms    all streaming {1000 * all_streaming:5.0f} ms")
        print("  " + ", ".join(f"{now.get(name, 0) - before.get(name, 0)} {name}" for name in OPERATIONS))
        daemon.stop()


OPERATIONS = ("Subscribe", "GetStreamingEvents", "Autodiscover", "Unsubscribe")

if __name__ == "__main__":
    main(*([int(number) for number in sys.argv[1:]] or [2000, 100]))
