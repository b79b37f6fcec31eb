"""The protocol of sd_notify, held against a socket as a service manager has it."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from listener.admin.notifier import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The address of a service manager, as $NOTIFY_SOCKET has it, and what it was told since the last call."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@ews-listener-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(name.replace("@", "\0", 1))
        server.setblocking(False)

        def told() -> list[str]:
            lines: list[str] = []
            while True:
                try:
                    lines += server.recv(4096).decode().split("\n")
                except BlockingIOError:
                    return lines

        yield name, told


def test_a_life(manager: tuple[str, Callable[[], list[str]]]) -> None:
    address, told = manager
    notifier = Notifier.take({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2500000"})
    notifier.ready("two\nlines")
    assert told() == ["READY=1", "STATUS=two lines"]
    notifier.status("Größe")
    assert told() == ["STATUS=Größe"]
    notifier.beat()
    assert told() == ["WATCHDOG=1"]
    notifier.extend(1.5)
    assert told() == ["EXTEND_TIMEOUT_USEC=1500000"]
    notifier.stopping("bye")
    assert told() == ["STOPPING=1", "STATUS=bye"]


def test_a_reload_is_over_whatever_came_of_it(manager: tuple[str, Callable[[], list[str]]]) -> None:
    address, told = manager
    notifier = Notifier(address)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with pytest.raises(ValueError), notifier.reloading():
        reloading, moment = told()
        raise ValueError
    assert reloading == "RELOADING=1"
    name, _, number = moment.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(number) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert told() == ["READY=1"]


def test_the_environment_is_taken() -> None:
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
def test_a_watchdog_that_is_not_ours(
    watchdog: dict[str, str], manager: tuple[str, Callable[[], list[str]]]
) -> None:
    address, told = manager
    notifier = Notifier.take({"NOTIFY_SOCKET": address, **watchdog})
    assert notifier == Notifier(address, None)
    notifier.beat()
    assert told() == []


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_service_manager_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier.take(environ | {"WATCHDOG_USEC": "1000"})
    assert notifier == Notifier()
    notifier.ready("")
    notifier.beat()
    with notifier.reloading():
        pass


def test_a_service_manager_that_is_gone_or_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "gone")).ready("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        for _ in range(1000):  # far more than its queue takes
            Notifier(str(tmp_path / "deaf")).status("x" * 1000)
