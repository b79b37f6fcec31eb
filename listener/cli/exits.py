"""How a command ends: errors become exit codes, signals become an orderly end."""

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import trio

from listener.cli.options import CONFIGURATION, FAILED
from listener.errors import ConfigError, ListenerError, OpeningError
from listener.journal import JournalDamagedError
from listener.log.queue_writer import print_errors
from listener.text import printable


@contextmanager
def reported() -> Iterator[None]:
    """Prints what is wrong, a line a problem, and ends: with 2 for the configuration, with 1 for what may pass."""
    errors: list[ListenerError] = []
    try:
        yield
    except* ListenerError as group:
        errors = list(_leaves(group))
    if errors:
        if any(isinstance(error, JournalDamagedError) for error in errors):
            # What else was raised then, such as by those whose writes were lost, only follows from that.
            errors = [error for error in errors if isinstance(error, JournalDamagedError)]
        lines = dict.fromkeys(line for error in errors for line in str(error).splitlines())
        print_errors("".join(f"error: {printable(line)}\n" for line in lines))
        raise SystemExit(CONFIGURATION if any(map(_is_final, errors)) else FAILED)


def _is_final(error: ListenerError) -> bool:
    """Whether the next start will end in the same way: systemd does not try again then (RestartPreventExitStatus)."""
    final = isinstance(error, ConfigError | JournalDamagedError)
    return final and not isinstance(error, OpeningError)


def _leaves(group: BaseExceptionGroup[ListenerError]) -> Iterator[ListenerError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def signalled(work: Callable[[trio.Event], Awaitable[None]]) -> None:
    """Runs `work(stop)`: the first SIGINT or SIGTERM sets `stop`, a second one ends the process as if unhandled."""
    stop, asked = trio.Event(), False
    token = trio.lowlevel.current_trio_token()

    def note(number: int, _frame: FrameType | None) -> None:
        # Not trio's own receiver: this must work while a handler that blocks keeps all tasks waiting.
        nonlocal asked
        if asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked = True
        token.run_sync_soon(stop.set)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        await work(stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
