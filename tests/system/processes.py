"""Run the simulator and the daemon as processes, and wait for conditions by polling with a timeout."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from tests.system import forked

TIMEOUT = 45.0  # seconds; generous, because other jobs may load the machine
Result = TypeVar("Result")


def until(
    condition: Callable[[], Result | Literal[False] | None],
    description: str | Callable[[], str],
    timeout: float = TIMEOUT,
) -> Result:
    """Poll `condition` and return its first true result.

    After `timeout` seconds, raise AssertionError with `description`; a callable is called only then.
    """
    started_at = time.monotonic()
    while not (result := condition()):
        waited = time.monotonic() - started_at
        assert waited < timeout, (
            f"not within {timeout} s: {description if isinstance(description, str) else description()}"
        )
        time.sleep(
            min(max(waited / 20, 0.01), 0.1)
        )  # polling takes processor time from the process that it waits for
    return result


def load_factor() -> float:
    """Return by what factor work takes longer under the current load; 1 on an idle machine."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


_parsed: dict[Path, tuple[bytes, list[dict[str, Any]]]] = {}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the parsed complete lines of a file. The file may be missing or still be growing."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    before, lines = _parsed.get(path, (b"", []))
    if not whole.startswith(before):  # the file was replaced
        before, lines = b"", []
    # Parse each line once, because tests poll these files.
    lines = lines + [json.loads(line) for line in whole[len(before) :].splitlines()]
    _parsed[path] = whole, lines
    return list(lines)


@dataclass
class Simulator:
    """A running `ews-listener simulate`.

    `info` is the JSON line that it prints at start. `config` is the configuration that it writes for the daemon.
    """

    process: "subprocess.Popen[str]"
    info: dict[str, Any]
    config: Path

    @property
    def folder(self) -> Path:
        return self.config.parent

    @property
    def mailboxes(self) -> list[str]:
        return (self.folder / "mailboxes.txt").read_text().split()

    @property
    def port(self) -> int:
        return int(self.info["ews_url"].split(":")[2].partition("/")[0])

    @property
    def deliveries(self) -> list[dict[str, Any]]:
        return json_lines(self.folder / "deliveries.jsonl")

    def state(self) -> dict[str, Any]:
        return self._control("state", None)

    def create_events(self, mailbox: str, kind: str = "NewMailEvent", count: int = 1) -> list[dict[str, Any]]:
        """Create events and return their ledger lines."""
        request = {"mailbox": mailbox, "kind": kind, "count": count}
        lines: list[dict[str, Any]] = self._control("events", request)["events"]
        return lines

    def set_rate(self, events_per_second: float) -> None:
        """Set the rate of generated events."""
        self._control("traffic", {"rate": events_per_second})

    def inject_fault(self, **fault: object) -> list[dict[str, Any]]:
        """Inject a fault and return its ledger lines; none if the fault waits for a matching request or stream."""
        lines: list[dict[str, Any]] = self._control("faults", fault)["made"]
        return lines

    def end_faults(self) -> None:
        """End all lasting faults."""
        self._control("faults", {"profile": "none"})

    def fault_status(self) -> dict[str, Any]:
        """Return the faults that were injected so far, and the pending ones."""
        return self._control("faults", None)

    def set_rights(self, mailbox: str, **rights: object) -> None:
        """Change the rights on a mailbox: `folders`, `account`, `in_scope`, `ews`."""
        self._control("rights", {"mailbox": mailbox, **rights})

    def set_group(self, group: str, members: list[str] | None) -> None:
        """Create or change a distribution group; None deletes it."""
        self._control("groups", {"address": group, "members": members})

    def until_streaming(self, mailboxes: int) -> None:
        """Wait until exactly this number of mailboxes is streaming."""
        until(lambda: self.state()["mailboxes_streaming"] == mailboxes, f"{mailboxes} mailboxes streaming")

    def append_config(self, text: str) -> None:
        """Append text to the configuration."""
        self.config.write_text(self.config.read_text() + text)

    def replace_config(self, old: str, new: str) -> None:
        """Replace text in the configuration."""
        before = self.config.read_text()
        assert old in before
        self.config.write_text(before.replace(old, new))

    def _control(self, resource: str, body: object) -> dict[str, Any]:
        context = ssl.create_default_context(cafile=self.info["ca_file"]) if self.info["ca_file"] else None
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.info['control_url']}/{resource}"
        with urllib.request.urlopen(url, data, timeout=10, context=context) as reply:
            response: dict[str, Any] = json.load(reply)
        return response


@dataclass
class Listener:
    """A running `ews-listener run`; `log_file` has its standard error."""

    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        return json_lines(self.log_file)

    def logged(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Return the log lines of this event that have these fields."""
        return [
            line
            for line in self.log
            if line["event"] == event and all(line.get(key) == value for key, value in fields.items())
        ]

    def seconds_since_start(self, line: dict[str, Any]) -> float:
        """Return the seconds from the first log line to this one."""
        first, later = (datetime.fromisoformat(each["time"]) for each in (self.log[0], line))
        return (later - first).total_seconds()

    def until_logged(self, event: str, count: int = 1, **fields: object) -> list[dict[str, Any]]:
        """Wait for at least `count` matching log lines and return them."""
        return until(
            lambda: lines if len(lines := self.logged(event, **fields)) >= count else None,
            lambda: f"{event} {fields}; the log: {self.log_file.read_text()[-3000:]}",
        )

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(signal_number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.log_file.read_text()[-3000:]}") from None


Start = Callable[..., Simulator]
"""Type of the fixture `simulator`, which starts a simulator with these command-line options."""
Listen = Callable[..., Listener]
"""Type of the fixture `listen`, which starts a daemon for a simulator with these environment variables."""


def handler(name: str, use: str, *options: str) -> str:
    """Return a handler section for the configuration."""
    return "\n".join([f"\n[handlers.{name}]", f'use = "{use}"', *options, ""])


def start_listener(config: Path, environment: Mapping[str, str]) -> Listener:
    errors = config.parent / "log.jsonl"
    with errors.open("wb") as file:
        process: subprocess.Popen[bytes] = forked.Popen(
            [sys.executable, "-m", "listener", "run", "--config", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, **environment},
        )
    return Listener(process, errors)


@dataclass
class Request:
    """One recorded HTTP request; header names are in lower case."""

    operation: str
    headers: dict[str, str]
    body: str


class Recorder:
    """A TCP proxy that records the bytes that clients send, separately for each connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._sent: list[bytearray] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._server]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    @property
    def requests(self) -> list[Request]:
        """Return all complete requests, in the order of their connections."""
        return [request for sent in self._sent for request in parse_requests(bytes(sent))]

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the thread that blocks on it
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                self._sent.append(bytearray())
                self._start(self._copy, client, server, self._sent[-1])
                self._start(self._copy, server, client, bytearray())

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, recorded: bytearray) -> None:
        with suppress(OSError):  # either end may close the connection
            while data := source.recv(65536):
                recorded += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def parse_requests(sent: bytes) -> list[Request]:
    requests = []
    while b"\r\n\r\n" in sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        pairs = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            break
        body = rest[:length].decode()
        operations = [
            name for name in ("Subscribe", "GetStreamingEvents", "Unsubscribe") if f"<m:{name}" in body
        ]
        requests.append(Request(operations[0] if operations else "-", headers, body))
        sent = rest[length:]
    return requests
