"""Start processes of `python -m listener` by forking a server that has already imported the package.

The suite starts the program about five hundred times. With exec, each start would spend about 0.9 s of processor time
on imports. Each test worker has one fork server, which imports once and forks for each start. The forked process has
its own arguments, environment, folder and descriptors, and runs `listener/__main__.py` as usual. Set
EWS_LISTENER_TESTS_EXEC=1 to start each process by exec. The tests of the installed program, of systemd and of the
package always use exec.

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
# Variables that the interpreter or an imported module reads only at its start, so that a fork cannot change them.
READ_AT_START = ("PYTHON", "LD_", "FORCE_COLOR", "NO_COLOR", "TTY_", "COLUMNS", "LINES", "TERM", "COVERAGE")
NUMBER = struct.Struct("=i")  # a size, a process id or a wait status


def run(
    command: Sequence[Any], *, timeout: float | None = None, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a command like subprocess.run, with the same options and exceptions."""
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
    """A subprocess.Popen that uses the fork server where possible, and exec otherwise."""

    _status_socket: socket.socket | None = None

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # The arguments of CPython 3.11 to 3.14. No test uses those after the descriptors.
        cwd, environ = rest[4], rest[5]
        if EXEC or rest[1] or rest[3] or not _can_fork(args, environ):  # preexec_fn, pass_fds
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        # Inherit stdout and stderr by default, but not stdin: in a test worker it is the channel to its controller.
        with open(os.devnull, "rb") as null:
            defaults = (null.fileno(), 1, 2)
            pipes = (rest[9], rest[12], rest[14])
            passed = [default if fd == -1 else fd for fd, default in zip(pipes, defaults, strict=True)]
            request = {
                "argv": [str(each) for each in args[3:]],
                "env": dict(os.environ if environ is None else environ),
                "cwd": str(cwd or Path.cwd()),
            }
            body = json.dumps(request).encode()
            self._status_socket = _connect()
            socket.send_fds(self._status_socket, [NUMBER.pack(len(body))], passed)
            self._status_socket.sendall(body)
            (self.pid,) = NUMBER.unpack(_receive(self._status_socket, NUMBER.size))
        self._child_created = True
        self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._status_socket is None:
            code: int | None = super()._internal_poll(*args, **options)  # type: ignore[misc]
            return code
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status_socket is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        if wait_flags & os.WNOHANG and not select.select([self._status_socket], [], [], 0)[0]:
            return 0, 0
        with self._status_socket:
            (status,) = NUMBER.unpack(_receive(self._status_socket, NUMBER.size))
        return self.pid, status


def _can_fork(args: Any, environ: Any) -> bool:
    if not isinstance(args, list | tuple) or [str(each) for each in args[:3]] != PROGRAM:
        return False
    requested = os.environ if environ is None else environ
    path = requested.get("PYTHONPATH", "").split(os.pathsep)
    if any(Path(folder, "sitecustomize.py").exists() for folder in path if folder):
        return False
    return not any(
        name.startswith(READ_AT_START)
        and name != "PYTHONPATH"
        and requested.get(name) != os.environ.get(name)
        for name in {*requested, *os.environ}
    )


@functools.cache
def _server() -> str:
    """Start the fork server of this process and return its socket address. The server ends with this process."""
    name = f"\0ews-listener-tests-{os.getpid()}"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(name)
    listening.listen(64)
    alive, keep_open = os.pipe()
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
        os.close(keep_open)
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
    """Fork for each connection and report each exit status, until `alive` is closed. Return only in the child."""
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
                with connection, suppress(OSError):  # the client may have gone
                    connection.sendall(NUMBER.pack(status))
                continue
            connection, _ = listening.accept()
            size, passed, _, _ = socket.recv_fds(connection, NUMBER.size, 3)
            request = json.loads(_receive(connection, *NUMBER.unpack(size)))
            if not (pid := os.fork()):
                for inherited in (listening, connection, *(each for _, each in running.values())):
                    inherited.close()
                for each in (alive, *running):
                    os.close(each)
                _set_up_child(request, passed)
                return
            for each in passed:
                os.close(each)
            connection.sendall(NUMBER.pack(pid))
            ended = os.pidfd_open(pid)
            running[ended] = pid, connection
            poll.register(ended, select.POLLIN)


def _set_up_child(request: dict[str, Any], passed: list[int]) -> None:
    """In the child, set up what exec and the start of the interpreter would have set up."""
    for target, fd in enumerate(passed):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.path[:0] = [each for each in request["env"].get("PYTHONPATH", "").split(os.pathsep) if each]
    importlib.invalidate_caches()
    random.seed()
    sys.argv[1:] = request["argv"]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    runpy.run_module("listener", run_name="__main__", alter_sys=True)
