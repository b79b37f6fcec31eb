"""`use = "exec"`: one process per event, with the event on its standard input."""

import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from listener import Handler, MailboxEvent, Reject
from listener.handlers._environment import NONE, environment_of, require_program

EX_DATAERR = 65
"""From sysexits.h: the input is invalid, so a retry is useless."""

_TAIL = 2000  # last bytes of the command's standard error that are reported
_AFTER_EXIT = 1.0  # seconds that a grandchild may keep standard error open


class CommandError(Exception):
    """The command ended with a status other than 0."""


@asynccontextmanager
async def open_exec(*, command: list[str], environment: Mapping[str, str] = NONE) -> AsyncIterator[Handler]:
    """Run `command`, a program and its arguments (no shell), for each event.

    The event's JSON is on standard input. The environment has EWS_EVENT_ID, EWS_EVENT_TYPE, EWS_MAILBOX, what
    `environment` sets and a few of the daemon's variables (docs/HANDLERS.md lists them). Standard output is dropped.
    Exit status 0 acknowledges the event and 65 rejects it. Any other status is a failure, which is logged with the
    end of standard error. A process that exceeds the handler's timeout is terminated (SIGTERM, after 5 s SIGKILL).
    Raises FileNotFoundError if the program does not exist.
    """
    variables = environment_of(environment)
    require_program(command, variables)

    async def handle(event: MailboxEvent) -> None:
        status, errors = await _run(command, event, variables)
        if status == 0:
            return
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        raise (
            Reject(errors or how) if status == EX_DATAERR else CommandError(f"{how}: {errors}".rstrip(": "))
        )

    yield handle


async def _run(command: list[str], event: MailboxEvent, variables: Mapping[str, str]) -> tuple[int, str]:
    """Run the command for one event. Return its exit status and the end of its standard error."""
    about = {"EWS_EVENT_ID": event.id, "EWS_EVENT_TYPE": event.type, "EWS_MAILBOX": event.mailbox}
    start = partial(
        trio.run_process,
        command,
        stdin=event.to_json().encode() + b"\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        env={**variables, **about},
    )
    tail = bytearray()

    async def keep_tail(stream: trio.abc.ReceiveStream) -> None:
        async with stream:
            while chunk := await stream.receive_some():
                tail.extend(chunk)
                del tail[:-_TAIL]

    async with trio.open_nursery() as reading:
        async with trio.open_nursery() as running:
            process: trio.Process = await running.start(start)
            assert process.stderr is not None
            reading.start_soon(keep_tail, process.stderr)
        reading.cancel_scope.deadline = trio.current_time() + _AFTER_EXIT
    return process.returncode or 0, tail.decode(errors="replace").strip()
