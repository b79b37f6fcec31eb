"""The simulator and the daemon as processes, and ways to watch them: by polling, each time with a deadline."""

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

TIMEOUT = 45.0  # on a machine that has other things to do
Result = TypeVar("Result")


def until(
    seen: Callable[[], Result | Literal[False] | None],
    what: str | Callable[[], str],
    timeout: float = TIMEOUT,
) -> Result:
    """What `seen` returns as soon as it is true. AssertionError after `timeout` seconds; `what` it says is made
    then, if it is called."""
    started_at = time.monotonic()
    while not (result := seen()):
        waited = time.monotonic() - started_at
        assert waited < timeout, f"not within {timeout} s: {what if isinstance(what, str) else what()}"
        time.sleep(min(max(waited / 20, 0.01), 0.1))  # who looks takes the processor from what it waits for
    return result


def load_factor() -> float:
    """How many times longer a second of work takes while others want the cores too; 1 on an idle machine."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


_read: dict[Path, tuple[bytes, list[dict[str, Any]]]] = {}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may not be there yet, or be written at this moment."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    before, lines = _read.get(path, (b"", []))
    if not whole.startswith(before):  # begun anew
        before, lines = b"", []
    # Each line is parsed once, however often it is asked for.
    lines = lines + [json.loads(line) for line in whole[len(before) :].splitlines()]
    _read[path] = whole, lines
    return list(lines)


@dataclass
class Simulator:
    """`ews-listener simulate`; its configuration for the daemon lies at `config`."""

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
        return self._ask("state", None)

    def create_events(self, mailbox: str, kind: str = "NewMailEvent", count: int = 1) -> list[dict[str, Any]]:
        """Makes events, and gives what the ledger says of them."""
        order = {"mailbox": mailbox, "kind": kind, "count": count}
        lines: list[dict[str, Any]] = self._ask("events", order)["events"]
        return lines

    def set_rate(self, events: float) -> None:
        """From now on so many events a second."""
        self._ask("traffic", {"rate": events})

    def inject_fault(self, **order: object) -> list[dict[str, Any]]:
        """Makes a fault, and gives what the ledger says of it; nothing if it waits for something to befall."""
        lines: list[dict[str, Any]] = self._ask("faults", order)["made"]
        return lines

    def end_faults(self) -> None:
        """Ends all faults that last."""
        self._ask("faults", {"profile": "none"})

    def fault_status(self) -> dict[str, Any]:
        """What was broken so far, and what is still to come."""
        return self._ask("faults", None)

    def set_rights(self, mailbox: str, **rights: object) -> None:
        """Gives rights to a mailbox, or takes them away: `folders`, `account`, `in_scope`, `ews`."""
        self._ask("rights", {"mailbox": mailbox, **rights})

    def set_group(self, group: str, members: list[str] | None) -> None:
        """Makes or changes a distribution group; None deletes it."""
        self._ask("groups", {"address": group, "members": members})

    def until_streaming(self, mailboxes: int) -> None:
        """Returns when so many mailboxes have a stream."""
        until(lambda: self.state()["mailboxes_streaming"] == mailboxes, f"{mailboxes} mailboxes streaming")

    def append_config(self, text: str) -> None:
        """Writes more into the configuration."""
        self.config.write_text(self.config.read_text() + text)

    def replace_config(self, old: str, new: str) -> None:
        """Replaces something in the configuration."""
        before = self.config.read_text()
        assert old in before
        self.config.write_text(before.replace(old, new))

    def _ask(self, what: str, order: object) -> dict[str, Any]:
        context = ssl.create_default_context(cafile=self.info["ca_file"]) if self.info["ca_file"] else None
        body = None if order is None else json.dumps(order).encode()
        url = f"{self.info['control_url']}/{what}"
        with urllib.request.urlopen(url, body, timeout=10, context=context) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer


@dataclass
class Listener:
    """`ews-listener run`, with its standard error in a file."""

    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        return json_lines(self.log_file)

    def logged(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """The lines of this event that have these fields."""
        return [
            line
            for line in self.log
            if line["event"] == event and all(line.get(key) == value for key, value in fields.items())
        ]

    def seconds_since_start(self, line: dict[str, Any]) -> float:
        """From its first line to this one."""
        first, then = (datetime.fromisoformat(each["time"]) for each in (self.log[0], line))
        return (then - first).total_seconds()

    def until_logged(self, event: str, count: int = 1, **fields: object) -> list[dict[str, Any]]:
        """The lines of this event, as soon as there are so many."""
        return until(
            lambda: lines if len(lines := self.logged(event, **fields)) >= count else None,
            lambda: f"{event} {fields}; the log: {self.log_file.read_text()[-3000:]}",
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and gives the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.log_file.read_text()[-3000:]}") from None


Start = Callable[..., Simulator]
"""The fixture `simulator`: options of the command, to a simulator that runs."""
Listen = Callable[..., Listener]
"""The fixture `listen`: a simulator and the environment, to a daemon that runs."""


def handler(name: str, use: str, *options: str) -> str:
    """A handler for the configuration."""
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
    """One request as it was on the wire; header names in lower case."""

    operation: str
    headers: dict[str, str]
    body: str


class Recorder:
    """A TCP proxy that notes what clients send, connection by connection."""

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
        """All whole requests, in the order of their connections."""
        return [request for sent in self._sent for request in parse_requests(bytes(sent))]

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
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
    def _copy(source: socket.socket, target: socket.socket, noted: bytearray) -> None:
        with suppress(OSError):  # either end may hang up
            while data := source.recv(65536):
                noted += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def parse_requests(sent: bytes) -> list[Request]:
    requests = []
    while b"\r\n\r\n" in sent:
        top, _, rest = sent.partition(b"\r\n\r\n")
        pairs = [line.partition(": ") for line in top.decode().split("\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            break
        body = rest[:length].decode()
        named = [name for name in ("Subscribe", "GetStreamingEvents", "Unsubscribe") if f"<m:{name}" in body]
        requests.append(Request(named[0] if named else "-", headers, body))
        sent = rest[length:]
    return requests
