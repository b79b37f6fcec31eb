"""The sd_notify messages of the daemon. A socket replaces systemd."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.processes import Listener, Simulator, handler, until

Start = Callable[..., Simulator]
Listen = Callable[..., Listener]


class ServiceManager:
    """Collects all lines that its socket receives."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while data := self._socket.recv(4096):
            self.lines += data.decode().split("\n")

    def close(self) -> None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path / "notify")
    yield manager
    manager.close()


def test_notifications_from_start_to_stop(simulator: Start, listen: Listen, manager: ServiceManager) -> None:
    exchange = simulator()
    daemon = listen(exchange, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="300000", WATCHDOG_PID="")
    until(lambda: "STATUS=4 of 4 mailboxes streaming" in manager.lines, "the status line")
    starting = manager.lines[: manager.lines.index("READY=1")]
    opening = [line for line in starting if line.startswith("STATUS=Opening")]
    assert opening
    assert all(line.endswith("; 0 of 4 mailboxes streaming") for line in opening)
    count = manager.lines.count("WATCHDOG=1")
    until(lambda: manager.lines.count("WATCHDOG=1") > count + 3, "more watchdog notifications")
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: len(exchange.deliveries) > 0, "a delivery")
    assert daemon.stop() == 0
    assert manager.lines.count("READY=1") == 1
    ending = manager.lines[manager.lines.index("STOPPING=1") :]
    assert ending[1].startswith("STATUS=Ending; ")


def test_a_failed_start_is_never_ready(simulator: Start, listen: Listen, manager: ServiceManager) -> None:
    exchange = simulator()
    exchange.append_config('\n[handlers.other]\nuse = "file"\npath = "no/such/folder/x.jsonl"\n')
    daemon = listen(exchange, NOTIFY_SOCKET=manager.address)
    assert daemon.wait() == 1
    assert "READY=1" not in manager.lines


def test_the_daemon_can_stop_during_startup(
    simulator: Start, listen: Listen, manager: ServiceManager, plugins: str
) -> None:
    exchange = simulator()
    exchange.append_config(handler("mute", "acme:open_mute"))  # its open function never returns
    daemon = listen(exchange, NOTIFY_SOCKET=manager.address, PYTHONPATH=plugins)
    daemon.until_logged("handler.started", handler="deliveries")
    assert daemon.stop() == 0
    assert "READY=1" not in manager.lines
    until(lambda: "STOPPING=1" in manager.lines, "the notification STOPPING=1")
    assert daemon.logged("listener.stopping")


def test_systemd_variables_are_not_passed_to_handler_processes(
    simulator: Start, listen: Listen, manager: ServiceManager, tmp_path: Path
) -> None:
    exchange = simulator()
    environment = tmp_path / "environment"
    exchange.append_config(
        f'\n[handlers.shell]\nuse = "exec"\ncommand = ["sh", "-c", "env > {environment}"]\n'
    )
    watchdog = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    daemon = listen(exchange, NOTIFY_SOCKET=manager.address, **watchdog)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    until(
        lambda: environment.exists() and "EWS_MAILBOX" in environment.read_text(), "the command's environment"
    )
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & {
        line.partition("=")[0] for line in environment.read_text().splitlines()
    }
    assert daemon.stop() == 0
    assert "WATCHDOG=1" not in manager.lines  # WATCHDOG_PID names another process
