"""Watchdog of the event loop: logs which handler blocks it, and where.

A handler that makes a blocking call stops all mailboxes and all other handlers. A thread schedules a callback in the
loop every second. If the callback does not run in time, the thread logs the stack of the loop's thread.
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
def watch_loop(*, every: float = 1.0, limit: float = 2.0) -> Iterator[None]:
    """Watch the current event loop while the context is open.

    `every` is the interval of the checks, `limit` the blocked time before the first report; both are seconds.
    """
    watch = _Watch(trio.lowlevel.current_trio_token(), threading.get_ident(), every, limit)
    thread = threading.Thread(target=watch.run, name="loop watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.stopped.set()


@dataclass(slots=True)
class _Watch:
    token: trio.lowlevel.TrioToken
    thread: int
    every: float
    limit: float
    stopped: threading.Event = field(default_factory=threading.Event)
    _answered: int = 0
    _alive_at: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        sent, next_report = 0, self.limit
        previous = time.monotonic()
        while not self.stopped.wait(self.every):
            now, slept = time.monotonic(), time.monotonic() - previous
            previous = now
            if self._answered == sent:
                sent, next_report, self._alive_at = sent + 1, self.limit, now
                try:
                    self.token.run_sync_soon(self._answer, sent)
                except trio.RunFinishedError:
                    return
            elif slept > 2 * self.every + 1:
                self._alive_at = now  # the whole process was stopped, as by SIGSTOP or a heavy load
            elif now - self._alive_at >= next_report:
                self._report(now - self._alive_at)
                # Double the interval between reports of the same block.
                next_report = 2 * (now - self._alive_at)

    def _answer(self, number: int) -> None:
        self._answered = number

    def _report(self, seconds: float) -> None:
        frame = sys._current_frames().get(self.thread)
        if frame is None:
            return
        handler = _handler_in(frame)
        stack = "".join(traceback.format_stack(frame)[-MAX_FRAMES:])
        fields = {"seconds": round(seconds, 1), "stack": stack}
        if handler is None:
            log.warning("listener.loop_blocked", **fields)
        else:
            log.error("handler.blocked_loop", handler=handler, **fields)


def _handler_in(frame: FrameType | None) -> str | None:
    """Return the handler whose code is running in this stack: called by its worker, or in a task that it started."""
    while frame is not None:
        if frame.f_code is Worker._attempt.__code__ or frame.f_code is Worker._run_until_stopped.__code__:
            worker = frame.f_locals.get("self")
            return worker.name if isinstance(worker, Worker) else None
        # The frame of trio's loop has the task that is running.
        task = frame.f_locals.get("task") if frame.f_globals.get("__name__") == "trio._core._run" else None
        if isinstance(task, trio.lowlevel.Task) and (handler := task.context.get(HANDLER)) is not None:
            return handler
        frame = frame.f_back
    return None


# Maximum frames of the logged stack. The innermost frames show the blocking call.
MAX_FRAMES = 12
