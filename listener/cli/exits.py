"""Exit of commands: errors become exit codes, signals become an orderly stop."""

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
def exit_on_errors() -> Iterator[None]:
    """Print each problem on its own line and exit: with 2 for a permanent error, with 1 if a restart may help."""
    errors: list[ListenerError] = []
    try:
        yield
    except* ListenerError as group:
        errors = list(_leaves(group))
    if errors:
        if any(isinstance(error, JournalDamagedError) for error in errors):
            # Other errors, such as those of failed writes, are only consequences of the damage.
            errors = [error for error in errors if isinstance(error, JournalDamagedError)]
        lines = dict.fromkeys(line for error in errors for line in str(error).splitlines())
        print_errors("".join(f"error: {printable(line)}\n" for line in lines))
        raise SystemExit(CONFIGURATION if any(map(_is_permanent, errors)) else FAILED)


def _is_permanent(error: ListenerError) -> bool:
    """Return whether the next start would fail in the same way. systemd then does not restart the daemon
    (RestartPreventExitStatus)."""
    permanent = isinstance(error, ConfigError | JournalDamagedError)
    return permanent and not isinstance(error, OpeningError)


def _leaves(group: BaseExceptionGroup[ListenerError]) -> Iterator[ListenerError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def run_until_signal(work: Callable[[trio.Event], Awaitable[None]]) -> None:
    """Run `work(stop)`. The first SIGINT or SIGTERM sets `stop`; a second one kills the process as if unhandled."""
    stop, stopping = trio.Event(), False
    token = trio.lowlevel.current_trio_token()

    def handle_signal(number: int, _frame: FrameType | None) -> None:
        # Not trio.open_signal_receiver(): the second signal must work while a handler blocks the event loop.
        nonlocal stopping
        if stopping:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stopping = True
        token.run_sync_soon(stop.set)

    previous = {number: signal.signal(number, handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        await work(stop)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
