"""Processes of `python -m listener`, forked from one that has already imported what the command needs.

A suite that starts the program some five hundred times would spend most of its time importing: about 0.9 s of
processor time each. One server process a test worker imports once and forks for each start. From there on a process
is like any other: it has its own arguments, environment, folder and descriptors, and goes through
`listener/__main__.py`. Set EWS_LISTENER_TESTS_EXEC=1 to start each by exec; the tests of the installed program, of
systemd and of the package always do.

    process = Popen([sys.executable, "-m", "listener", "run", "--config", path], env=…, stderr=file)
    done = run([sys.executable, "-m", "listener", "status"], text=True, stdout=subprocess.PIPE)
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, AnyStr

PROGRAM = [sys.executable, "-m", "listener"]
EXEC = bool(os.environ.get("EWS_LISTENER_TESTS_EXEC"))
# What the interpreter or an imported module reads once, before a fork could change it.
READ_AT_START = ("PYTHON", "LD_", "FORCE_COLOR", "NO_COLOR", "TTY_", "COLUMNS", "LINES", "TERM", "COVERAGE")
NUMBER = struct.Struct("=i")  # a size, a process id or a wait status


def run(
    command: Sequence[Any], *, timeout: float | None = None, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Like subprocess.run, with the same options and errors."""
    given = options.pop("input", None)
    if given is not None:
        options["stdin"] = subprocess.PIPE
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, errors = process.communicate(given, timeout)
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    if check and code:
        raise subprocess.CalledProcessError(code, command, out, errors)
    return subprocess.CompletedProcess(command, code, out, errors)


class Popen(subprocess.Popen[AnyStr]):
    """A subprocess.Popen that forks where it can; otherwise it is the ordinary one."""

    _ended: socket.socket | None = None

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # The arguments of CPython 3.11 to 3.14; what stands after the descriptors is not used by any test.
        cwd, environ = rest[4], rest[5]
        if EXEC or rest[1] or rest[3] or not _can_fork(args, environ):  # a function before exec, descriptors
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        # Without a pipe or file of its own it has ours; but a test worker's input is the channel of its controller.
        with open(os.devnull, "rb") as nothing:
            own = (nothing.fileno(), 1, 2)
            passed = [o if fd == -1 else fd for fd, o in zip((rest[9], rest[12], rest[14]), own, strict=True)]
            order = {
                "argv": [str(each) for each in args[3:]],
                "env": dict(os.environ if environ is None else environ),
                "cwd": str(cwd or Path.cwd()),
            }
            body = json.dumps(order).encode()
            self._ended = _connect()
            socket.send_fds(self._ended, [NUMBER.pack(len(body))], passed)
            self._ended.sendall(body)
            (self.pid,) = NUMBER.unpack(_receive(self._ended, NUMBER.size))
        self._child_created = True
        self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._ended is None:
            code: int | None = super()._internal_poll(*args, **options)  # type: ignore[misc]
            return code
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._ended is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        if wait_flags & os.WNOHANG and not select.select([self._ended], [], [], 0)[0]:
            return 0, 0
        with self._ended:
            (status,) = NUMBER.unpack(_receive(self._ended, NUMBER.size))
        return self.pid, status


def _can_fork(args: Any, environ: Any) -> bool:
    if not isinstance(args, list | tuple) or [str(each) for each in args[:3]] != PROGRAM:
        return False
    wanted = os.environ if environ is None else environ
    path = wanted.get("PYTHONPATH", "").split(os.pathsep)
    if any(Path(folder, "sitecustomize.py").exists() for folder in path if folder):
        return False
    return not any(
        name.startswith(READ_AT_START) and name != "PYTHONPATH" and wanted.get(name) != os.environ.get(name)
        for name in {*wanted, *os.environ}
    )


@functools.cache
def _server() -> str:
    """Start the fork server of this process and return its address. It ends with this process."""
    name = f"\0ews-listener-tests-{os.getpid()}"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(name)
    listening.listen(64)
    alive, ours = os.pipe()
    with listening:
        passed = (listening.fileno(), alive)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.system.forked", *map(str, passed)],
            pass_fds=passed,
            cwd=Path(__file__).parent.parent.parent,
            stdin=subprocess.DEVNULL,
        )
    os.close(alive)

    def end() -> None:
        os.close(ours)
        server.wait()

    atexit.register(end)
    return name


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(_server())
    return connection


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = connection.recv(size - len(received))
        if not more:
            raise ConnectionError("the fork server has ended")
        received += more
    return received


def serve(listening: socket.socket, alive: int) -> None:
    """Forks for each connection and reports each end, until `alive` is closed. Returns in the child."""
    import listener

    for module in pkgutil.walk_packages(listener.__path__, "listener."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    running: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(alive, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == alive:
                os._exit(0)
            if fd in running:
                poll.unregister(fd)
                pid, connection = running.pop(fd)
                os.close(fd)
                status = os.waitpid(pid, 0)[1]
                with connection, suppress(OSError):  # it may not be waited for any more
                    connection.sendall(NUMBER.pack(status))
                continue
            connection, _ = listening.accept()
            size, passed, _, _ = socket.recv_fds(connection, NUMBER.size, 3)
            order = json.loads(_receive(connection, *NUMBER.unpack(size)))
            if not (pid := os.fork()):
                for inherited in (listening, connection, *(each for _, each in running.values())):
                    inherited.close()
                for each in (alive, *running):
                    os.close(each)
                _become(order, passed)
                return
            for each in passed:
                os.close(each)
            connection.sendall(NUMBER.pack(pid))
            ended = os.pidfd_open(pid)
            running[ended] = pid, connection
            poll.register(ended, select.POLLIN)


def _become(order: dict[str, Any], passed: list[int]) -> None:
    """In the child: what exec and the interpreter's start would have set up."""
    for target, fd in enumerate(passed):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    sys.path[:0] = [each for each in order["env"].get("PYTHONPATH", "").split(os.pathsep) if each]
    importlib.invalidate_caches()
    random.seed()
    sys.argv[1:] = order["argv"]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    runpy.run_module("listener", run_name="__main__", alter_sys=True)
