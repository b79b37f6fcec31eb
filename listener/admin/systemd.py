"""Status line and watchdog for systemd.

The watchdog is fed while the event loop runs this task and the journal writer makes progress, because without the
writer no event is delivered. Disk errors, a full journal, an unreachable Exchange and failing handlers appear in the
status line only: a restart would not fix them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import structlog
import trio

from listener.admin.notifier import Notifier

log = structlog.get_logger()


class Progress(Protocol):
    """A component whose progress the watchdog monitors."""

    @property
    def idle(self) -> float:
        """Seconds since the last progress."""


@dataclass(slots=True)
class Systemd:
    """The systemd side of the daemon, active while at_hand() is open.

    `describe` returns the current status line. `heart` is the journal; it counts as stuck after `limit` seconds
    without progress.
    """

    notifier: Notifier
    describe: Callable[[], str]
    heart: Progress | None = None
    limit: float = 60.0
    # Starts, reloads and stops in progress. Their timeout is extended while the daemon makes progress.
    _in_progress: int = field(default=1, init=False)
    _within: float = field(default=inf, init=False)
    _stop_by: float = field(default=inf, init=False)
    _overdue: bool = field(default=False, init=False)
    _last_status: str = field(default="", init=False)
    _stuck: bool = field(default=False, init=False)

    def ready(self) -> None:
        """Report that journal and handlers are open."""
        self._in_progress -= 1
        self._last_status = self.describe()
        self.notifier.ready(self._last_status)

    def stopping(self, within: float) -> None:
        """Report that the daemon is stopping.

        After `within` seconds the stop counts as hanging, although the loop runs. Its timeout is then no longer
        extended, and systemd kills the daemon after its own timeout.
        """
        self._in_progress += 1
        self._within, self._stop_by = within, trio.current_time() + within
        self._last_status = self.describe()
        self.notifier.stopping(self._last_status)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Report a reload while the context is open, and its end, with or without success, afterwards."""
        self._in_progress += 1
        try:
            with self.notifier.reloading():
                yield
        finally:
            self._in_progress -= 1

    @asynccontextmanager
    async def at_hand(self) -> AsyncIterator[None]:
        """Send notifications while the context is open. Does nothing without a service manager."""
        async with trio.open_nursery() as nursery:
            if self.notifier.address is not None:
                nursery.start_soon(self._run)
            yield
            nursery.cancel_scope.cancel()

    @property
    def is_stuck(self) -> bool:
        """Return whether the journal makes no progress although the event loop runs."""
        return self.heart is not None and self.heart.idle > self.limit

    async def _run(self) -> None:
        while True:
            self._update()
            await trio.sleep(self._interval)

    @property
    def _interval(self) -> float:
        """Seconds between updates. systemd recommends two beats per watchdog interval; three tolerate a delay."""
        return min(STATUS_INTERVAL, (self.notifier.watchdog or STATUS_INTERVAL * 3) / 3)

    def _update(self) -> None:
        if self.heart is not None and self.is_stuck:
            if not self._stuck:
                log.error("service.stuck", idle=round(self.heart.idle, 1), limit=self.limit)
            self._stuck = True
        else:
            self._stuck = False
            self.notifier.beat()
            if trio.current_time() >= self._stop_by:
                if not self._overdue:
                    log.error("service.end_overdue", within=self._within)
                self._overdue = True
            elif self._in_progress:
                self.notifier.extend(EXTENSION)
        status = self.describe()
        if status != self._last_status:
            self._last_status = status
            self.notifier.status(status)


# Seconds: the minimum time between two status lines, and the timeout extension of a start, reload or stop.
STATUS_INTERVAL = 1.0
EXTENSION = 15.0
