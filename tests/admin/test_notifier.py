"""The sd_notify protocol, tested against a socket like that of a service manager."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from listener.admin.notifier import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Return an address for $NOTIFY_SOCKET, and a function that returns the lines received since its last call."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@ews-listener-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(name.replace("@", "\0", 1))
        server.setblocking(False)

        def received() -> list[str]:
            lines: list[str] = []
            while True:
                try:
                    lines += server.recv(4096).decode().split("\n")
                except BlockingIOError:
                    return lines

        yield name, received


def test_messages(manager: tuple[str, Callable[[], list[str]]]) -> None:
    address, received = manager
    notifier = Notifier.take({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2500000"})
    notifier.ready("two\nlines")
    assert received() == ["READY=1", "STATUS=two lines"]
    notifier.status("Größe")
    assert received() == ["STATUS=Größe"]
    notifier.beat()
    assert received() == ["WATCHDOG=1"]
    notifier.extend(1.5)
    assert received() == ["EXTEND_TIMEOUT_USEC=1500000"]
    notifier.stopping("bye")
    assert received() == ["STOPPING=1", "STATUS=bye"]


def test_end_of_reload_is_reported_after_an_error(manager: tuple[str, Callable[[], list[str]]]) -> None:
    address, received = manager
    notifier = Notifier(address)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with pytest.raises(ValueError), notifier.reloading():
        reloading, moment = received()
        raise ValueError
    assert reloading == "RELOADING=1"
    name, _, number = moment.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(number) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert received() == ["READY=1"]


def test_take_removes_the_variables() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    assert Notifier.take(environ) == Notifier("/x", 0.001)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid() + 1)},
    ],
)
def test_watchdog_for_another_process_is_ignored(
    watchdog: dict[str, str], manager: tuple[str, Callable[[], list[str]]]
) -> None:
    address, received = manager
    notifier = Notifier.take({"NOTIFY_SOCKET": address, **watchdog})
    assert notifier == Notifier(address, None)
    notifier.beat()
    assert received() == []


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_service_manager_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier.take(environ | {"WATCHDOG_USEC": "1000"})
    assert notifier == Notifier()
    notifier.ready("")
    notifier.beat()
    with notifier.reloading():
        pass


def test_missing_or_unresponsive_service_manager_does_not_block(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "gone")).ready("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unresponsive:
        unresponsive.bind(str(tmp_path / "unresponsive"))
        for _ in range(1000):  # far more than the queue of the socket can hold
            Notifier(str(tmp_path / "unresponsive")).status("x" * 1000)
