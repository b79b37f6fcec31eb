"""What a service manager hears from the started daemon; a socket stands in for it."""

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


class Manager:
    """Keeps all lines that come to its socket."""

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
def manager(tmp_path: Path) -> Iterator[Manager]:
    there = Manager(tmp_path / "notify")
    yield there
    there.close()


def test_a_life_in_lines(simulator: Start, listen: Listen, manager: Manager) -> None:
    there = simulator()
    daemon = listen(there, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="300000", WATCHDOG_PID="")
    until(lambda: "STATUS=4 of 4 mailboxes streaming" in manager.lines, "the status line")
    assert any(line.startswith("STATUS=Opening") for line in manager.lines[: manager.lines.index("READY=1")])
    beats = manager.lines.count("WATCHDOG=1")
    until(lambda: manager.lines.count("WATCHDOG=1") > beats + 3, "more beats")
    there.create_events(there.mailboxes[0])
    until(lambda: len(there.deliveries) > 0, "a delivery")
    assert daemon.stop() == 0
    assert manager.lines.count("READY=1") == 1
    ending = manager.lines[manager.lines.index("STOPPING=1") :]
    assert ending[1].startswith("STATUS=Ending; ")


def test_a_bad_start_is_never_ready(simulator: Start, listen: Listen, manager: Manager) -> None:
    there = simulator()
    there.append_config('\n[handlers.other]\nuse = "file"\npath = "no/such/folder/x.jsonl"\n')
    daemon = listen(there, NOTIFY_SOCKET=manager.address)
    assert daemon.wait() == 1
    assert "READY=1" not in manager.lines


def test_the_end_may_come_in_the_midst_of_the_start(
    simulator: Start, listen: Listen, manager: Manager, plugins: str
) -> None:
    there = simulator()
    there.append_config(handler("mute", "acme:open_mute"))  # never open
    daemon = listen(there, NOTIFY_SOCKET=manager.address, PYTHONPATH=plugins)
    daemon.until_logged("handler.started", handler="deliveries")
    assert daemon.stop() == 0
    assert "READY=1" not in manager.lines
    until(lambda: "STOPPING=1" in manager.lines, "the begin of the end")
    assert daemon.logged("listener.stopping")


def test_what_is_told_only_to_us_is_not_handed_on(
    simulator: Start, listen: Listen, manager: Manager, tmp_path: Path
) -> None:
    there = simulator()
    environment = tmp_path / "environment"
    there.append_config(f'\n[handlers.shell]\nuse = "exec"\ncommand = ["sh", "-c", "env > {environment}"]\n')
    watchdog = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    daemon = listen(there, NOTIFY_SOCKET=manager.address, **watchdog)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0])
    until(
        lambda: environment.exists() and "EWS_MAILBOX" in environment.read_text(), "the command's environment"
    )
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & {
        line.partition("=")[0] for line in environment.read_text().splitlines()
    }
    assert daemon.stop() == 0
    assert "WATCHDOG=1" not in manager.lines  # another process was meant
