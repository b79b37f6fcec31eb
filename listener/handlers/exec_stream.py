"""`use = "exec-stream"`: one long-lived process, which is fed a line of JSON an event."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

from listener import Handler, MailboxEvent, Reject, Retry

_GRACE = 5.0  # seconds after the end of its input, and again after SIGTERM
_MAX_ANSWER = 65536


@asynccontextmanager
async def open_exec_stream(
    *, command: list[str], acknowledge: bool = False, restart_first: float = 1.0, restart_cap: float = 60.0
) -> AsyncIterator[Handler]:
    """Start `command`, a program and its arguments (no shell), and write each event's JSON to its standard input.

    With `acknowledge`, the process answers each line by a line on standard output, as soon as it has dealt with
    it: `ok`, `retry` or `reject`, and after the latter two a reason if it likes. Without, an event counts as
    handled once it is in the pipe, so that those which a process leaves unread when it dies are lost; standard
    output is dropped. Standard error is the listener's own.

    The process starts with the first event. When it ends, the event in hand is tried again with a new one, which
    is started `restart_first` seconds later; the wait doubles up to `restart_cap` while the processes do not live
    that long. At the end, the process gets the end of its input, 5 s later SIGTERM, 5 s later SIGKILL.
    Raises FileNotFoundError if there is no such program.
    """
    if not command or shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no program {command[0] if command else 'in an empty command'}")
    child = _Child(command, acknowledge, restart_first, restart_cap)
    one_at_a_time = trio.Lock()

    async def handle(event: MailboxEvent) -> None:
        async with one_at_a_time:
            answer = await child.ask(event.to_json().encode() + b"\n")
        verdict, _, reason = answer.partition(" ")
        if verdict == "retry":
            raise Retry(reason)
        if verdict == "reject":
            raise Reject(reason)
        if verdict != "ok":
            raise ValueError(f"the process answered {answer[:200]!r} instead of ok, retry or reject")

    try:
        yield handle
    finally:
        await child.close()


class _Child:
    def __init__(self, command: list[str], acknowledge: bool, first: float, cap: float) -> None:
        self._command = command
        self._acknowledge = acknowledge
        self._first = first
        self._cap = cap
        self._wait = first
        self._started = 0.0
        self._not_before = float("-inf")
        self._process: trio.Process | None = None
        self._broken = False
        self._answers = bytearray()
        self._log = structlog.get_logger()

    async def ask(self, line: bytes) -> str:
        """Write a line and return the answer, `ok` if none is asked for. Raises Retry when the process has ended.

        A call that is cancelled leaves the process with half a line, or us with an answer to come: it is killed.
        """
        process = await self._running()
        whole = False
        try:
            assert process.stdin is not None
            await process.stdin.send_all(line)
            answer = await self._answer(process) if self._acknowledge else "ok"
            whole = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Retry("the process has ended") from None
        finally:
            if not whole:
                self._broken = True
                process.kill()
        return answer

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with trio.CancelScope(shield=True):
            assert process.stdin is not None
            await process.stdin.aclose()
            for urge in (process.terminate, process.kill):
                with trio.move_on_after(_GRACE):
                    await process.wait()
                    break
                urge()
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()

    async def _running(self) -> trio.Process:
        process = self._process
        if process is not None and (self._broken or process.poll() is not None):
            await self.close()
            self._ended(process)
        if self._process is None:
            pause = self._not_before - trio.current_time()
            if pause > 0:
                # Nobody has tried this event: it is not its fault that there is no process to take it.
                raise Retry("the process has ended", after=pause, counts=False)
            self._process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self._acknowledge else subprocess.DEVNULL,
            )
            self._started = trio.current_time()
            self._broken = False
            self._answers.clear()
        return self._process

    def _ended(self, process: trio.Process) -> None:
        lived = trio.current_time() - self._started
        self._wait = self._first if lived >= self._cap else min(self._wait, self._cap)
        self._not_before = trio.current_time() + self._wait
        self._log.warning(
            "handler.process_ended",
            command=self._command[0],
            status=process.returncode,
            restart_after=self._wait,
        )
        self._wait *= 2

    async def _answer(self, process: trio.Process) -> str:
        assert process.stdout is not None
        while b"\n" not in self._answers:
            chunk = await process.stdout.receive_some()
            if not chunk:
                raise trio.BrokenResourceError
            self._answers += chunk
            if len(self._answers) > _MAX_ANSWER:
                raise ValueError("the process answered without end")
        answer, _, rest = self._answers.partition(b"\n")
        self._answers = bytearray(rest)
        return answer.decode(errors="replace").strip()
