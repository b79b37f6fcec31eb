"""Measure a restart with saved subscriptions: duration and requests, with real processes and sockets.

`python benchmarks/restart.py [MAILBOXES]`, 2000 by default. The simulator keeps running. The daemon subscribes all
mailboxes, is killed (`kill -9`) and starts again. Seconds count from the start of the process; on a busy machine, CPU
seconds are more meaningful. READY is the notification to systemd, after which the daemon opens the streams.
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
SAVED = 5.0  # seconds until the last subscriptions are saved on the disk
TIMEOUT = 900.0  # seconds


class DaemonProcess:
    """A running daemon, with the notification socket on which it reports that it is ready."""

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
        """Return whether the daemon has sent READY=1 since the last call."""
        try:
            return b"READY=1" in self._socket.recv(4096)
        except BlockingIOError:
            return False

    def wait_until(self, condition: Callable[[], bool]) -> float:
        """Wait for `condition()`. Return the seconds since the start of the process."""
        while not condition():
            if self.process.poll() is not None or time.monotonic() - self._started_at > TIMEOUT:
                raise SystemExit("the daemon ended, or did not reach the expected state in time")
            time.sleep(0.02)
        return time.monotonic() - self._started_at

    @property
    def cpu(self) -> float:
        """CPU seconds that the daemon has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal and wait for the end of the process."""
        self.process.send_signal(number)
        self.process.wait()
        self._socket.close()


class RunningSimulator:
    """The control interface of a running simulator."""

    def __init__(self, control_url: str, ca_file: str | None) -> None:
        self._url = control_url
        self._trust = ssl.create_default_context(cafile=ca_file) if ca_file else None

    def state(self) -> dict[str, Any]:
        """Return the simulator's state."""
        return self._request("state")

    def set_rate(self, events: float) -> None:
        """Set the number of changes per second."""
        self._request("traffic", {"rate": events})

    def request_counts(self) -> dict[str, int]:
        """Return the number of requests by operation."""
        return {operation: sum(codes.values()) for operation, codes in self.state()["requests"].items()}

    def _request(self, path: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        body = None if order is None else json.dumps(order).encode()
        with urllib.request.urlopen(f"{self._url}/{path}", body, context=self._trust) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


@contextmanager
def start_simulator(directory: Path, mailboxes: int, *options: str) -> Iterator[RunningSimulator]:
    """Run a simulator without traffic. It writes config.toml for the daemon into `directory`."""
    command = [*LISTENER, "simulate", "--mailboxes", str(mailboxes), "--rate", "0"]
    command += ["--write-config", str(directory / "config.toml"), "--until-stdin-closes", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        yield RunningSimulator(addresses["control_url"], addresses["ca_file"])


def main(mailboxes: int) -> None:
    """Print the figures of the first start and of the restart."""
    with tempfile.TemporaryDirectory() as name, start_simulator(Path(name), mailboxes) as simulator:
        before: dict[str, int] = {}
        for title in ("first start", "restart after kill -9"):
            daemon = DaemonProcess(Path(name))
            ready, ready_cpu = daemon.wait_until(daemon.is_ready), daemon.cpu
            streaming = daemon.wait_until(lambda: simulator.state()["mailboxes_streaming"] == mailboxes)
            streaming_cpu, now = daemon.cpu, simulator.request_counts()
            print(f"{mailboxes} mailboxes, {title}:")
            print(f"  READY         {ready:5.1f} s   CPU {ready_cpu:5.1f} s")
            print(f"  all streaming {streaming:5.1f} s   CPU {streaming_cpu:5.1f} s")
            print("  " + ", ".join(f"{now.get(name, 0) - before.get(name, 0)} {name}" for name in OPERATIONS))
            time.sleep(SAVED)
            daemon.stop(signal.SIGKILL)
            before = simulator.request_counts()
            while simulator.state()["mailboxes_streaming"]:
                time.sleep(0.05)


OPERATIONS = ("Subscribe", "GetStreamingEvents", "Autodiscover")

if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
