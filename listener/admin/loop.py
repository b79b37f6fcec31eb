"""Notices that the event loop stands still, and logs which handler blocks it, and where.

A handler that calls something that blocks keeps all mailboxes and all other handlers waiting. A thread asks the loop
for a sign of life every second; where none comes, it logs the stack of the loop's thread. This costs the loop one
callback a second.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import structlog
import trio

from listener.delivery.isolation import HANDLER
from listener.delivery.worker import Worker

log = structlog.get_logger()


@contextmanager
def watched_loop(*, every: float = 1.0, limit: float = 2.0) -> Iterator[None]:
    """Watch the loop that this is called in, while the context lasts. Times are in seconds."""
    watch = _Watch(trio.lowlevel.current_trio_token(), threading.get_ident(), every, limit)
    thread = threading.Thread(target=watch.run, name="loop watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.over.set()


@dataclass(slots=True)
class _Watch:
    token: trio.lowlevel.TrioToken
    thread: int
    every: float
    limit: float
    over: threading.Event = field(default_factory=threading.Event)
    _answered: int = 0
    _seen: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        asked, next_report = 0, self.limit
        before = time.monotonic()
        while not self.over.wait(self.every):
            now, slept = time.monotonic(), time.monotonic() - before
            before = now
            if self._answered == asked:
                asked, next_report, self._seen = asked + 1, self.limit, now
                try:
                    self.token.run_sync_soon(self._answer, asked)
                except trio.RunFinishedError:
                    return
            elif slept > 2 * self.every + 1:
                self._seen = now  # the whole process stood still, as after SIGSTOP or under a heavy load
            elif now - self._seen >= next_report:
                self._report(now - self._seen)
                # While it goes on, ever more seldom.
                next_report = 2 * (now - self._seen)

    def _answer(self, number: int) -> None:
        self._answered = number

    def _report(self, seconds: float) -> None:
        frame = sys._current_frames().get(self.thread)
        if frame is None:
            return
        handler = _handler_in(frame)
        stack = "".join(traceback.format_stack(frame)[-DEEPEST:])
        about = {"seconds": round(seconds, 1), "stack": stack}
        if handler is None:
            log.warning("listener.loop_blocked", **about)
        else:
            log.error("handler.blocked_loop", handler=handler, **about)


def _handler_in(frame: FrameType | None) -> str | None:
    """The handler whose code is running in this stack, called by its worker or in a task of its own."""
    while frame is not None:
        if frame.f_code is Worker._attempt.__code__ or frame.f_code is Worker._run_until_stopped.__code__:
            worker = frame.f_locals.get("self")
            return worker.name if isinstance(worker, Worker) else None
        # trio's loop has the task whose step this is.
        task = frame.f_locals.get("task") if frame.f_globals.get("__name__") == "trio._core._run" else None
        if isinstance(task, trio.lowlevel.Task) and (handler := task.context.get(HANDLER)) is not None:
            return handler
        frame = frame.f_back
    return None


# Frames of the stack that are logged: the innermost say what blocks.
DEEPEST = 12
