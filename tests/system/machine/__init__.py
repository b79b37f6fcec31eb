"""A test machine: a real systemd as process 1 of its own namespaces, over a copy-on-write view of the host.

    with Machine.boot(folder, binds={source: target}) as machine:
        machine.write("/etc/ews-listener/config.toml", text)
        machine.run("systemctl", "start", "ews-listener")

The machine does not change the host's file system: its root is an overlay whose upper layer is in memory and is
discarded with the machine. It shares the host's network, so that it can connect to servers on the host's 127.0.0.1.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.processes import until

BOOT = Path(__file__).parent / "boot.sh"
SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = ("setpriv", "unshare", "nsenter", "systemctl", "journalctl")


@functools.cache
def unavailable_reason() -> str:
    """Return why no machine can be booted here; empty if one can."""
    if os.geteuid() != 0:
        return "a private systemd needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or SYSTEMD}"
    if _own_cgroup() is None:
        return "no writable cgroup2 file system"
    try_overlay = (
        "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work /mnt/root && "
        "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root"
    )
    namespaces = ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup"]
    attempt = subprocess.run([*namespaces, "sh", "-c", try_overlay], capture_output=True, text=True)
    return f"namespaces or overlays are not available: {attempt.stderr.strip()}" if attempt.returncode else ""


def _own_cgroup() -> Path | None:
    """Return the cgroup2 directory of this process; None if it is not writable."""
    entries = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = [before.split()[4] for before, after in entries if after.startswith("cgroup2 ")]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not mounts or not own:
        return None
    group = Path(mounts[0] + own[0])
    return group if os.access(group, os.W_OK) else None


@dataclass(frozen=True)
class Machine:
    """A booted machine; `pid` is the process id of its systemd on the host."""

    pid: int

    @classmethod
    @contextmanager
    def boot(cls, folder: Path, binds: Mapping[Path, str]) -> Iterator[Machine]:
        """Boot a machine, and kill it at the end.

        `folder` must be empty; only the console log remains in it. `binds` maps host paths to the read-only mount
        points inside.
        """
        parent = _own_cgroup()
        assert parent is not None
        before = os.umask(0o022)  # the usual umask: other users must be able to read units and directories
        group = parent / f"ews-listener-test-{os.getpid()}-{folder.name}"
        group.mkdir()
        mount_point = folder / "machine"
        mount_point.mkdir()
        console = folder / "console.log"
        # pdeathsig: the machine ends with the tests, even if they are killed.
        join = 'echo $$ > "$0" && exec setpriv --pdeathsig=KILL -- "$@"'
        namespaces = ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup"]
        pairs = [f"{source}:{target}" for source, target in binds.items()]
        with console.open("wb") as log:
            outer = subprocess.Popen(
                [
                    "sh",
                    "-c",
                    join,
                    group / "cgroup.procs",
                    "unshare",
                    *namespaces,
                    "bash",
                    BOOT,
                    mount_point,
                    *pairs,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            machine = cls(until(lambda: _child(outer), "the first process of the machine"))
            until(lambda: machine._is_up(outer), f"a booted machine; see {console}")
            yield machine
        finally:
            outer.send_signal(signal.SIGKILL)
            outer.wait()
            until(lambda: _removed(group), "the end of all processes of the machine")
            os.umask(before)

    def _is_up(self, outer: subprocess.Popen[bytes]) -> bool:
        assert outer.poll() is None, "the machine did not boot"
        # Before pivot_root, systemctl would ask the systemd of the host.
        started = Path(f"/proc/{self.pid}/comm").read_text().strip() == "systemd"
        return started and self.output_of("systemctl", "is-system-running").strip() in ("running", "degraded")

    def path(self, inside: str) -> Path:
        """Return the host path of a file in the machine."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(self, *command: str, timeout: float = 60.0) -> str:
        """Run a command and return its standard output. Raise AssertionError if it fails."""
        done = self._run(command, timeout)
        assert done.returncode == 0, (
            f"{command} gave {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout

    def output_of(self, *command: str, timeout: float = 60.0) -> str:
        """Run a command and return its standard output, whatever its exit status."""
        return self._run(command, timeout).stdout

    def run_failing(self, *command: str, timeout: float = 60.0) -> str:
        """Run a command and return its output. Raise AssertionError if it does not fail."""
        done = self._run(command, timeout)
        assert done.returncode != 0, f"{command} did not fail: {done.stdout}"
        return done.stdout + done.stderr

    def _run(self, command: tuple[str, ...], timeout: float) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        return subprocess.run(
            [*enter, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd="/",
            env=environ,
        )


def _child(outer: subprocess.Popen[bytes]) -> int | None:
    """Return the process id of the child of `unshare`, which becomes systemd."""
    assert outer.poll() is None, "the machine did not boot"
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    return int(children[0]) if children else None


def _removed(group: Path) -> bool:
    """Remove a cgroup and its children; return False while they still have processes."""
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)
    except OSError:
        return False
    return True
