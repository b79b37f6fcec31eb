"""How long a restart takes with saved subscriptions, and what it asks of the server: real processes, real sockets.

`python benchmarks/restart.py [MAILBOXES]`, 2000 by default. The simulator runs on; the daemon subscribes everybody,
is killed (`kill -9`), and starts again. Seconds count from the start of the process; those of the processor tell more
on a busy machine. READY is what systemd is told; from then on the streams are opened.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LISTENER = (sys.executable, "-m", "listener")
SAVED = 5.0  # seconds until what was subscribed last is on the disk
PATIENCE = 900.0


class Run:
    """A daemon from its start on, with the socket that it tells when it is ready."""

    def __init__(self, directory: Path) -> None:
        address = directory / "notify"
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._socket.setblocking(False)
        self._started_at = time.monotonic()
        self.process = subprocess.Popen(
            [*LISTENER, "run", "--config", str(directory / "config.toml")],
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
            stderr=subprocess.DEVNULL,
        )

    def is_ready(self) -> bool:
        """Whether it has said so since it was asked last."""
        try:
            return b"READY=1" in self._socket.recv(4096)
        except BlockingIOError:
            return False

    def until(self, seen: Callable[[], bool]) -> float:
        """Seconds from the start of the process until something is seen."""
        while not seen():
            if self.process.poll() is not None or time.monotonic() - self._started_at > PATIENCE:
                raise SystemExit("the daemon did not get there")
            time.sleep(0.02)
        return time.monotonic() - self._started_at

    @property
    def cpu(self) -> float:
        """Seconds of the processor that it has had."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it so."""
        self.process.send_signal(number)
        self.process.wait()
        self._socket.close()


class Simulated:
    """A simulator at work, which wrote a configuration for the daemon."""

    def __init__(self, control_url: str, ca_file: str | None) -> None:
        self._url = control_url
        self._trust = ssl.create_default_context(cafile=ca_file) if ca_file else None

    def state(self) -> dict[str, Any]:
        """What it tells of itself."""
        return self._ask("state")

    def rate(self, events: float) -> None:
        """From now on so many changes happen a second."""
        self._ask("traffic", {"rate": events})

    def asked(self) -> dict[str, int]:
        """How many requests of each kind it has had."""
        return {what: sum(codes.values()) for what, codes in self.state()["requests"].items()}

    def _ask(self, what: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        body = None if order is None else json.dumps(order).encode()
        with urllib.request.urlopen(f"{self._url}/{what}", body, context=self._trust) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


@contextmanager
def simulated(directory: Path, mailboxes: int, *options: str) -> Iterator[Simulated]:
    """Runs one with so many mailboxes, in which nothing happens at first."""
    command = [*LISTENER, "simulate", "--mailboxes", str(mailboxes), "--rate", "0"]
    command += ["--write-config", str(directory / "config.toml"), "--until-stdin-closes", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield Simulated(told["control_url"], told["ca_file"])


def main(mailboxes: int) -> None:
    """Prints both starts."""
    with tempfile.TemporaryDirectory() as name, simulated(Path(name), mailboxes) as there:
        before: dict[str, int] = {}
        for what in ("the first start", "after kill -9"):
            run = Run(Path(name))
            ready, ready_cpu = run.until(run.is_ready), run.cpu
            streaming = run.until(lambda: there.state()["mailboxes_streaming"] == mailboxes)
            streaming_cpu, now = run.cpu, there.asked()
            print(f"{mailboxes} mailboxes, {what}:")
            print(f"  READY         {ready:5.1f} s   processor {ready_cpu:5.1f} s")
            print(f"  all streaming {streaming:5.1f} s   processor {streaming_cpu:5.1f} s")
            print("  " + ", ".join(f"{now.get(name, 0) - before.get(name, 0)} {name}" for name in ASKED))
            time.sleep(SAVED)
            run.end(signal.SIGKILL)
            before = there.asked()
            while there.state()["mailboxes_streaming"]:
                time.sleep(0.05)


ASKED = ("Subscribe", "GetStreamingEvents", "Autodiscover")

if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
