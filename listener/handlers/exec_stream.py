"""`use = "exec-stream"`: one long-lived process, which is fed a line of JSON an event."""

import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
import trio

from listener import Handler, MailboxEvent, Reject, Retry
from listener.handlers._environment import NONE, environment_of, require_program

_GRACE = 5.0  # seconds after the end of its input, and again after SIGTERM
_MAX_ANSWER = 65536
_MAX_LINE = 4096  # bytes of a line of its standard error that are logged
_LINES_A_SECOND = 20  # of them, on average; a burst may be ten times as many
_DRAIN = 0.5  # seconds that a process which has ended may have left something on standard error


@asynccontextmanager
async def open_exec_stream(
    *,
    command: list[str],
    acknowledge: bool = False,
    restart_first: float = 1.0,
    restart_cap: float = 60.0,
    environment: Mapping[str, str] = NONE,
) -> AsyncIterator[Handler]:
    """Start `command`, a program and its arguments (no shell), and write each event's JSON to its standard input.

    With `acknowledge`, the process answers each line by a line on standard output, as soon as it has dealt with
    it: `ok`, `retry` or `reject`, and after the latter two a reason if it likes. Without, an event counts as
    handled once it is in the pipe, so that those which a process leaves unread when it dies are lost; standard
    output is dropped. Lines on standard error are logged (`handler.process_stderr`), some each second. The process
    gets what `environment` sets and a few of the daemon's variables (docs/HANDLERS.md lists them).

    The process starts with the first event. When it ends, the event in hand is tried again with a new one, which
    is started `restart_first` seconds later; the wait doubles up to `restart_cap` while the processes do not live
    that long. At the end, the process gets the end of its input, 5 s later SIGTERM, 5 s later SIGKILL.
    Raises FileNotFoundError if there is no such program.
    """
    variables = environment_of(environment)
    require_program(command, variables)
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

    async with trio.open_nursery() as nursery:
        child = _Child(command, acknowledge, restart_first, restart_cap, variables, nursery)
        try:
            yield handle
        finally:
            await child.close()
        nursery.cancel_scope.deadline = trio.current_time() + _DRAIN


class _Child:
    def __init__(
        self,
        command: list[str],
        acknowledge: bool,
        first: float,
        cap: float,
        variables: Mapping[str, str],
        nursery: trio.Nursery,
    ) -> None:
        self._variables = variables
        self._nursery = nursery
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
                stderr=subprocess.PIPE,
                env=self._variables,
            )
            assert self._process.stderr is not None
            self._nursery.start_soon(self._log_errors, self._process.stderr)
            self._started = trio.current_time()
            self._broken = False
            self._answers.clear()
        return self._process

    async def _log_errors(self, stream: trio.abc.ReceiveStream) -> None:
        """Logs what the process writes on standard error, line by line, until it closes that. What comes too fast is
        read all the same, so that the process does not block, and counted."""
        rest, left_out = bytearray(), 0
        credit, since = 10.0 * _LINES_A_SECOND, trio.current_time()

        def note(line: bytes | bytearray) -> None:
            nonlocal credit, since, left_out
            now = trio.current_time()
            credit, since = min(10.0 * _LINES_A_SECOND, credit + (now - since) * _LINES_A_SECOND), now
            if credit < 1:
                left_out += 1
                return
            credit -= 1
            text = line[:_MAX_LINE].decode(errors="replace").strip()
            more = {"left_out": left_out} if left_out else {}
            left_out = 0
            if text:
                self._log.info("handler.process_stderr", command=self._command[0], text=text, **more)

        async with stream:
            while chunk := await stream.receive_some():
                rest += chunk
                *lines, last = rest.split(b"\n")
                rest = bytearray(last)
                for line in lines:
                    note(line)
                if len(rest) > _MAX_LINE:  # a line without end
                    note(rest)
                    rest.clear()
            note(rest)

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
