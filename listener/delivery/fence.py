"""What a plugin raised, and what is our own cancellation.

A plugin may raise anything: SystemExit, KeyboardInterrupt, a BaseException of its own, a trio.Cancelled that it kept
from a scope of its own. All of that is its failure. In the daemon, SIGINT raises nothing: listener/cli/exits.py
handles the signal.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any, Final

import trio

HANDLER: Final[ContextVar[str | None]] = ContextVar("handler", default=None)
"""The handler that a task belongs to: its worker, and all tasks that its plugin starts."""


def divided(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Return what of the exception must go on, and what the plugin failed with.

    A Cancelled is ours only where a scope around the caller has been cancelled. Everything is ours outside of trio:
    the interpreter then throws away the caller's own coroutine, with GeneratorExit.
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
    """Stands for an exception whose `repr()` raises."""


def _guard_nurseries() -> None:
    """Have trio survive a task whose exception cannot be printed.

    A nursery puts the repr() of an exception into the reason of the cancellation that follows. If that raises, trio
    takes it for an error of its own and ends the run, with all of the daemon. The nursery may be the plugin's,
    where nothing of ours stands between.
    """
    finished: Any = getattr(trio.Nursery, "_child_finished", None)
    nested: Any = getattr(trio.Nursery, "_nested_child_finished", None)
    if finished is None or nested is None:  # another version of trio, which may not do that
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
    """The exception, or one that stands for it."""
    try:
        repr(error)
    except BaseException:  # noqa: BLE001
        return UnprintableError(type(error).__name__).with_traceback(error.__traceback__)
    return error


_guard_nurseries()
