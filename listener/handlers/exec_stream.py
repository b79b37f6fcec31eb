"""`use = "exec-stream"`: one long-lived process, which reads one line of JSON per event."""

import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
import trio

from listener import Handler, MailboxEvent, Reject, Retry
from listener.handlers._environment import NONE, environment_of, require_program

_GRACE = 5.0  # seconds to wait after closing its input, and again after SIGTERM
_MAX_ANSWER = 65536
_MAX_LINE = 4096  # logged bytes per line of its standard error
_LINES_PER_SECOND = 20  # logged lines, on average; a burst may have ten times as many
_DRAIN = 0.5  # seconds to read the rest of standard error after the process has ended


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

    With `acknowledge`, the process answers each line with a line on standard output when it has handled the event:
    `ok`, `retry` or `reject`, the latter two with an optional reason. Otherwise an event counts as handled once it is
    in the pipe, so events that the process has not read when it dies are lost; standard output is dropped. Lines on
    standard error are logged (`handler.process_stderr`) at a limited rate. The environment has what `environment`
    sets and a few of the daemon's variables (docs/HANDLERS.md lists them).

    The process starts with the first event. When it ends, a new one starts `restart_first` seconds later and gets the
    current event again. The delay doubles up to `restart_cap` until a process runs for that long. On shutdown, its
    input is closed, and it gets SIGTERM after 5 s and SIGKILL after another 5 s. Raises FileNotFoundError if the
    program does not exist.
    """
    variables = environment_of(environment)
    require_program(command, variables)
    lock = trio.Lock()  # one event at a time: the answers have no ids

    async def handle(event: MailboxEvent) -> None:
        async with lock:
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
        """Write a line and return the answer, or `ok` without `acknowledge`. Raises Retry if the process has ended.

        A cancelled call kills the process: half a line may be in the pipe, or the answer would arrive late and be
        taken for the answer to the next event.
        """
        process = await self._running()
        complete = False
        try:
            assert process.stdin is not None
            await process.stdin.send_all(line)
            answer = await self._answer(process) if self._acknowledge else "ok"
            complete = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Retry("the process has ended") from None
        finally:
            if not complete:
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
            for stop in (process.terminate, process.kill):
                with trio.move_on_after(_GRACE):
                    await process.wait()
                    break
                stop()
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()

    async def _running(self) -> trio.Process:
        process = self._process
        if process is not None and (self._broken or process.poll() is not None):
            await self.close()
            self._note_end(process)
        if self._process is None:
            pause = self._not_before - trio.current_time()
            if pause > 0:
                # This does not count as an attempt: no process has received the event.
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
        """Log the lines that the process writes on standard error, until it closes it.

        Lines beyond the rate limit are read too, so that the process does not block, and counted.
        """
        rest, left_out = bytearray(), 0
        credit, since = 10.0 * _LINES_PER_SECOND, trio.current_time()

        def note(line: bytes | bytearray) -> None:
            nonlocal credit, since, left_out
            now = trio.current_time()
            credit, since = min(10.0 * _LINES_PER_SECOND, credit + (now - since) * _LINES_PER_SECOND), now
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
                if len(rest) > _MAX_LINE:  # bounds the memory for a line that never ends
                    note(rest)
                    rest.clear()
            note(rest)

    def _note_end(self, process: trio.Process) -> None:
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
                raise ValueError(f"the process sent more than {_MAX_ANSWER} bytes without a line end")
        answer, _, rest = self._answers.partition(b"\n")
        self._answers = bytearray(rest)
        return answer.decode(errors="replace").strip()
