"""The control socket: one JSON object a line in, one a line out, over a Unix socket in the state directory.

Only who may write there can connect (mode 0600). A request is `{"do": NAME, …}`; an answer is `{"ok": …}` or
`{"error": TEXT}`. The same requests work on the journal of a daemon that does not run: see `asked`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from listener.errors import ListenerError
from listener.journal import DeadLetter, Journal, sqlite

log = structlog.get_logger()

SOCKET = "control.sock"
LONGEST_REQUEST = 1024 * 1024


class RefusedError(ListenerError):
    """A request that cannot be carried out; the text says why."""


# --- what can be asked of a journal


class ListDeadLetters(msgspec.Struct, tag_field="do", tag="dead_letters", forbid_unknown_fields=True):
    """Dead letters, oldest first, with higher numbers than `after`; of one handler, or of all."""

    handler: str | None = None
    after: int = 0
    limit: int = 100


class ShowDeadLetter(msgspec.Struct, tag_field="do", tag="dead_letter", forbid_unknown_fields=True):
    """One dead letter, with its traceback."""

    number: int


class RetryDeadLetters(msgspec.Struct, tag_field="do", tag="retry", forbid_unknown_fields=True):
    """Dead letters back to their handlers; answers how many there were."""

    numbers: list[int]


class DiscardDeadLetters(msgspec.Struct, tag_field="do", tag="discard", forbid_unknown_fields=True):
    """Dead letters deleted; answers how many there were."""

    numbers: list[int]


class Replay(msgspec.Struct, tag_field="do", tag="replay", forbid_unknown_fields=True):
    """A handler gets again what was journaled since a Unix time; answers how many events that are."""

    handler: str
    since: float
    mailbox: str | None = None


Request = ListDeadLetters | ShowDeadLetter | RetryDeadLetters | DiscardDeadLetters | Replay


async def carry_out(request: Request, journal: Journal) -> Any:
    """Does what is asked. Raises RefusedError, or JournalError as the journal does."""
    match request:
        case ListDeadLetters(handler, after, limit):
            letters = await journal.dead_letters(handler, after=after, limit=limit)
            return [summary(letter) for letter in letters]
        case ShowDeadLetter(number):
            letter = await journal.dead_letter(number)
            if letter is None:
                raise RefusedError(f"there is no dead letter {number}")
            return summary(letter) | {"traceback": letter.traceback}
        case RetryDeadLetters(numbers):
            return await journal.retry(numbers)
        case DiscardDeadLetters(numbers):
            return await journal.discard(numbers)
        case Replay(handler, since, mailbox):
            return await journal.replay(handler, since, mailbox)


def summary(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON: number, handler, time, attempts, reason, event (its CloudEvents form)."""
    return {
        "number": letter.number,
        "handler": letter.handler,
        "time": letter.time,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "event": letter.event.to_cloudevent(),
    }


# --- the daemon's side


async def serve(
    directory: Path, journal: Journal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answers on the control socket until cancelled."""
    with _short(directory) as path:
        path.unlink(missing_ok=True)
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            await listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen()
        try:
            task_status.started()
            await trio.serve_listeners(
                partial(_answer_one, journal=journal), [trio.SocketListener(listening)]
            )
        finally:
            path.unlink(missing_ok=True)


async def _answer_one(stream: trio.SocketStream, journal: Journal) -> None:
    async with stream:
        try:
            line = await _line(stream)
            answer = await answered(line, journal)
            await stream.send_all(msgspec.json.encode(answer) + b"\n")
        except trio.BrokenResourceError:
            pass  # whoever asked has gone


async def answered(line: bytes, journal: Journal) -> dict[str, Any]:
    """The answer to one request."""
    try:
        return {"ok": await carry_out(msgspec.json.decode(line, type=Request), journal)}
    except (msgspec.MsgspecError, ListenerError) as error:
        return {"error": str(error)}


# --- the side that asks


async def asked(directory: Path, request: Request) -> Any:
    """What the daemon of this state directory answers; if none runs, its journal itself is asked.

    Raises RefusedError with the daemon's words; ConfigError or JournalError as the journal does.
    """
    try:
        with _short(directory) as path:
            stream = await trio.open_unix_socket(str(path))
    except OSError:
        async with sqlite.open_journal(directory) as journal:
            return await carry_out(request, journal)
    async with stream:
        await stream.send_all(msgspec.json.encode(request) + b"\n")
        answer = msgspec.json.decode(await _line(stream))
    if "error" in answer:
        raise RefusedError(answer["error"])
    return answer["ok"]


async def _line(stream: trio.SocketStream) -> bytes:
    received = bytearray()
    while b"\n" not in received:
        chunk = await stream.receive_some()
        if not chunk or len(received) > LONGEST_REQUEST:
            break
        received += chunk
    return bytes(received.partition(b"\n")[0])


@contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """The socket's path by way of an open directory: the kernel takes 107 bytes, and directories may lie deep."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{handle}") / SOCKET
    finally:
        os.close(handle)
