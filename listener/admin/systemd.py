"""Keeps the service manager informed while the daemon lives: what it does, and that it still makes progress.

What is progress? That this task gets its turn, so the loop runs; and that the journal's writer has finished a turn
lately, for without it nothing is delivered any more. A disk that refuses, a journal that is full, an Exchange that is
down and a handler that fails are no reasons for a restart, which would not help: the status line tells of them.
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


class Heart(Protocol):
    """What must not stand still."""

    @property
    def idle(self) -> float:
        """Seconds since its last sign of life."""


@dataclass(slots=True)
class Systemd:
    """Speaks for the daemon to the service manager, while it is at_hand().

    `describe` gives the status line at any moment. `heart` may stand still for `limit` seconds.
    """

    notifier: Notifier
    describe: Callable[[], str]
    heart: Heart | None = None
    limit: float = 60.0
    _under_way: int = field(
        default=1, init=False
    )  # of start, reload and end: they may take longer while all moves
    _within: float = field(default=inf, init=False)
    _end_by: float = field(default=inf, init=False)
    _overdue: bool = field(default=False, init=False)
    _told: str = field(default="", init=False)
    _stuck: bool = field(default=False, init=False)

    def ready(self) -> None:
        """Configuration, journal and handlers stand."""
        self._under_way -= 1
        self._told = self.describe()
        self.notifier.ready(self._told)

    def stopping(self, within: float) -> None:
        """From now on all is about ending in order. What takes longer than `within` seconds hangs, though the loop
        runs: then the service manager's own patience counts."""
        self._under_way += 1
        self._within, self._end_by = within, trio.current_time() + within
        self._told = self.describe()
        self.notifier.stopping(self._told)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """A reload is on its way while the context lasts, whatever comes of it."""
        self._under_way += 1
        try:
            with self.notifier.reloading():
                yield
        finally:
            self._under_way -= 1

    @asynccontextmanager
    async def at_hand(self) -> AsyncIterator[None]:
        """Attends while the context lasts. Does nothing where there is no service manager."""
        async with trio.open_nursery() as nursery:
            if self.notifier.address is not None:
                nursery.start_soon(self._run)
            yield
            nursery.cancel_scope.cancel()

    @property
    def is_stuck(self) -> bool:
        """Whether the daemon makes no progress, though the loop runs."""
        return self.heart is not None and self.heart.idle > self.limit

    async def _run(self) -> None:
        while True:
            self._attend()
            await trio.sleep(self._pause)

    @property
    def _pause(self) -> float:
        """A beat twice in the interval of the watchdog is what systemd asks for; thrice bears a busy moment."""
        return min(STATUS_EVERY, (self.notifier.watchdog or STATUS_EVERY * 3) / 3)

    def _attend(self) -> None:
        if self.heart is not None and self.is_stuck:
            if not self._stuck:
                log.error("service.stuck", idle=round(self.heart.idle, 1), limit=self.limit)
            self._stuck = True
        else:
            self._stuck = False
            self.notifier.beat()
            if trio.current_time() >= self._end_by:
                if not self._overdue:
                    log.error("service.end_overdue", within=self._within)
                self._overdue = True
            elif self._under_way:
                self.notifier.extend(EXTENSION)
        status = self.describe()
        if status != self._told:
            self._told = status
            self.notifier.status(status)


# Seconds: how often the status line may change, and how long a start or an end that still moves may go on from now.
STATUS_EVERY = 1.0
EXTENSION = 15.0
