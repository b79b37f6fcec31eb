"""How a command ends: errors become exit codes, signals become an orderly end."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from listener.errors import ConfigError, Problem

CONFIGURATION = 2


@contextmanager
def reported() -> Iterator[None]:
    """Prints what is wrong with the configuration, a line a problem, and ends with exit code 2."""
    problems: list[Problem] = []
    try:
        yield
    except* ConfigError as group:
        problems = [problem for error in _leaves(group) for problem in error.problems]
    if problems:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(CONFIGURATION)


def _leaves(group: BaseExceptionGroup[ConfigError]) -> Iterator[ConfigError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def signalled(work: Callable[[trio.Event], Awaitable[None]]) -> None:
    """Runs `work(stop)`: the first SIGINT or SIGTERM sets `stop`, a second one ends the process as if unhandled."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

            async def listen() -> None:
                async for number in signals:
                    if stop.is_set():
                        signal.signal(number, signal.SIG_DFL)
                        os.kill(os.getpid(), number)
                    stop.set()

            nursery.start_soon(listen)
            await work(stop)
            nursery.cancel_scope.cancel()
