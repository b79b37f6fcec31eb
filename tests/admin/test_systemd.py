"""What the service manager hears while the daemon works, hangs and ends."""

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
    """Keeps what it is told, and when."""

    address: str | None = "/nobody"
    watchdog: float | None = 6.0
    heard: list[tuple[float, str]] = field(default_factory=list)

    def _send(self, *lines: str) -> None:
        self.heard.append((trio.current_time(), " ".join(lines)))

    def times(self, line: str) -> list[float]:
        return [when for when, heard in self.heard if heard.startswith(line)]


@dataclass
class Heart:
    idle: float = 0.0


async def test_it_beats_while_the_journal_lives(autojump_clock: MockClock) -> None:
    start, manager, heart = trio.current_time(), Manager(), Heart()
    systemd = Systemd(manager, lambda: "fine", heart, limit=20)
    with capture_logs() as logged:
        async with systemd.at_hand():
            await trio.sleep(10.5)
            beats = manager.times("WATCHDOG=1")
            assert max(b - a for a, b in itertools.pairwise(beats)) <= 2.0
            assert beats[-1] > start + 8
            heart.idle = 20.1
            await trio.sleep(10)
            assert manager.times("WATCHDOG=1") == beats
            heart.idle = 0.1
            await trio.sleep(2)
            assert len(manager.times("WATCHDOG=1")) > len(beats)
    stuck: list[Any] = [(line["event"], line["idle"], line["limit"]) for line in logged]
    assert stuck == [("service.stuck", 20.1, 20)]


async def test_the_start_and_the_end_may_take_their_time_but_only_while_something_moves(
    autojump_clock: MockClock,
) -> None:
    manager, heart = Manager(), Heart()
    systemd = Systemd(manager, lambda: "fine", heart)
    extension = f"EXTEND_TIMEOUT_USEC={EXTENSION * 1e6:.0f}"
    async with systemd.at_hand():
        await trio.sleep(5)
        assert len(manager.times(extension)) >= 3
        systemd.ready()
        manager.heard.clear()
        await trio.sleep(60)
        assert not manager.times(extension)
        with systemd.reloading():
            await trio.sleep(5)
            assert len(manager.times(extension)) >= 3
        manager.heard.clear()
        await trio.sleep(60)
        assert not manager.times(extension)
        systemd.stopping(within=60)
        await trio.sleep(5)
        assert len(manager.times(extension)) >= 3
        heart.idle = 100
        manager.heard.clear()
        await trio.sleep(60)
        assert not manager.times(extension)


async def test_an_end_that_does_not_come_to_its_end_is_left_to_the_manager(autojump_clock: MockClock) -> None:
    manager = Manager()
    systemd = Systemd(manager, lambda: "fine")  # told to stop while it starts
    with capture_logs() as logged:
        async with systemd.at_hand():
            started_at = trio.current_time()
            systemd.stopping(within=40)
            await trio.sleep(300)
    extended = [when - started_at for when in manager.times("EXTEND_TIMEOUT_USEC")]
    assert 38 < max(extended) <= 40
    assert max(manager.times("WATCHDOG=1")) - started_at > 290  # the loop does not hang
    assert [(line["event"], line["within"]) for line in logged] == [("service.end_overdue", 40)]


async def test_the_status_is_told_when_it_changes(autojump_clock: MockClock) -> None:
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
    told = [line for _, line in manager.heard if not line.startswith("EXTEND")]
    assert told == ["STATUS=opening", "READY=1 STATUS=1 of 2", "STATUS=2 of 2", "STOPPING=1 STATUS=ending"]


async def test_without_a_service_manager_it_is_silent(autojump_clock: MockClock) -> None:
    manager = Manager(address=None)
    async with Systemd(manager, lambda: "fine").at_hand():
        await trio.sleep(60)
    assert manager.heard == []
