"""Notifications to systemd while the daemon works, hangs and stops."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from listener.admin.notifier import Notifier
from listener.admin.systemd import EXTENSION, Systemd


@dataclass(frozen=True)
class Manager(Notifier):
    """Records all messages with their times."""

    address: str | None = "/unused"
    watchdog: float | None = 6.0
    received: list[tuple[float, str]] = field(default_factory=list)

    def _send(self, *lines: str) -> None:
        self.received.append((trio.current_time(), " ".join(lines)))

    def times(self, line: str) -> list[float]:
        return [time for time, message in self.received if message.startswith(line)]


@dataclass
class Journal:
    idle: float = 0.0


async def test_watchdog_is_fed_while_the_journal_makes_progress(autojump_clock: MockClock) -> None:
    start, manager, journal = trio.current_time(), Manager(), Journal()
    systemd = Systemd(manager, lambda: "fine", journal, limit=20)
    with capture_logs() as logged:
        async with systemd.at_hand():
            await trio.sleep(10.5)
            beats = manager.times("WATCHDOG=1")
            assert max(b - a for a, b in itertools.pairwise(beats)) <= 2.0
            assert beats[-1] > start + 8
            journal.idle = 20.1
            await trio.sleep(10)
            assert manager.times("WATCHDOG=1") == beats
            journal.idle = 0.1
            await trio.sleep(2)
            assert len(manager.times("WATCHDOG=1")) > len(beats)
    stuck: list[Any] = [(line["event"], line["idle"], line["limit"]) for line in logged]
    assert stuck == [("service.stuck", 20.1, 20)]


async def test_timeouts_of_start_and_stop_are_extended_while_there_is_progress(
    autojump_clock: MockClock,
) -> None:
    manager, journal = Manager(), Journal()
    systemd = Systemd(manager, lambda: "fine", journal)
    extension = f"EXTEND_TIMEOUT_USEC={EXTENSION * 1e6:.0f}"
    async with systemd.at_hand():
        await trio.sleep(5)
        assert len(manager.times(extension)) >= 3
        systemd.ready()
        manager.received.clear()
        await trio.sleep(60)
        assert not manager.times(extension)
        with systemd.reloading():
            await trio.sleep(5)
            assert len(manager.times(extension)) >= 3
        manager.received.clear()
        await trio.sleep(60)
        assert not manager.times(extension)
        systemd.stopping(within=60)
        await trio.sleep(5)
        assert len(manager.times(extension)) >= 3
        journal.idle = 100
        manager.received.clear()
        await trio.sleep(60)
        assert not manager.times(extension)


async def test_timeout_of_a_hanging_stop_is_not_extended(autojump_clock: MockClock) -> None:
    manager = Manager()
    systemd = Systemd(manager, lambda: "fine")  # stopped during the start
    with capture_logs() as logged:
        async with systemd.at_hand():
            started_at = trio.current_time()
            systemd.stopping(within=40)
            await trio.sleep(300)
    extended = [time - started_at for time in manager.times("EXTEND_TIMEOUT_USEC")]
    assert 38 < max(extended) <= 40
    assert max(manager.times("WATCHDOG=1")) - started_at > 290  # the loop does not hang
    assert [(line["event"], line["within"]) for line in logged] == [("service.end_overdue", 40)]


async def test_status_is_sent_when_it_changes(autojump_clock: MockClock) -> None:
    lines = ["opening", "1 of 2", "2 of 2", "ending"]
    manager = Manager(watchdog=None)
    systemd = Systemd(manager, lambda: lines[0])
    async with systemd.at_hand():
        await trio.sleep(5)
        lines.pop(0)
        systemd.ready()
        await trio.sleep(5)
        lines.pop(0)
        await trio.sleep(5)
        lines.pop(0)
        systemd.stopping(within=60)
    received = [line for _, line in manager.received if not line.startswith("EXTEND")]
    assert received == [
        "STATUS=opening",
        "READY=1 STATUS=1 of 2",
        "STATUS=2 of 2",
        "STOPPING=1 STATUS=ending",
    ]


async def test_without_a_service_manager_nothing_is_sent(autojump_clock: MockClock) -> None:
    manager = Manager(address=None)
    async with Systemd(manager, lambda: "fine").at_hand():
        await trio.sleep(60)
    assert manager.received == []
