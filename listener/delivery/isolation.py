"""Isolate the daemon from the exceptions of plugins, and separate them from the daemon's own cancellation.

A plugin may raise anything: SystemExit, KeyboardInterrupt, its own BaseException, a trio.Cancelled that it kept from
a scope of its own. All of these are failures of the plugin. In the daemon, SIGINT raises nothing:
listener/cli/exits.py handles the signal.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any, Final

import trio

HANDLER: Final[ContextVar[str | None]] = ContextVar("handler", default=None)
"""The handler that a task belongs to: its worker, and all tasks that its plugin starts."""


def split_cancellation(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Split an exception into the part that must propagate and the part that is the plugin's failure.

    A Cancelled is the daemon's only if a scope around the caller was cancelled. Outside of trio everything must
    propagate: the interpreter closes the caller's own coroutine then, with GeneratorExit.
    """
    try:
        cancelled = trio.current_effective_deadline() == -math.inf
    except RuntimeError:
        return error, None
    if not cancelled:
        return None, error
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)
    return (error, None) if isinstance(error, trio.Cancelled) else (None, error)


class UnprintableError(Exception):
    """Replaces an exception whose `repr()` raises."""


def _guard_nurseries() -> None:
    """Patch trio's nurseries so that a task whose exception cannot be printed does not end the run.

    A nursery puts the repr() of an exception into the reason of the cancellation that follows. If that raises, trio
    treats it as an internal error and ends the run, and with it the daemon. The nursery may be the plugin's, so the
    daemon's own code cannot catch the exception first.
    """
    finished: Any = getattr(trio.Nursery, "_child_finished", None)
    nested: Any = getattr(trio.Nursery, "_nested_child_finished", None)
    if finished is None or nested is None:  # another version of trio, which may not call repr()
        return

    def child_finished(nursery: trio.Nursery, task: trio.lowlevel.Task, outcome: Any) -> None:
        if isinstance(error := getattr(outcome, "error", None), BaseException):
            outcome = type(outcome)(_printable(error))
        finished(nursery, task, outcome)

    async def nested_child_finished(nursery: trio.Nursery, error: BaseException | None) -> Any:
        return await nested(nursery, None if error is None else _printable(error))

    patched: Any = trio.Nursery
    patched._child_finished, patched._nested_child_finished = child_finished, nested_child_finished


def _printable(error: BaseException) -> BaseException:
    """Return the exception, or an UnprintableError if its `repr()` raises."""
    try:
        repr(error)
    except BaseException:  # noqa: BLE001
        return UnprintableError(type(error).__name__).with_traceback(error.__traceback__)
    return error


_guard_nurseries()
