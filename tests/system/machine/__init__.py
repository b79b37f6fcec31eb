"""A machine for tests: a real systemd as process 1 of its own namespaces, over a copy-on-write view of this machine.

    with Machine.boot(folder, binds={source: target}) as machine:
        machine.write("/etc/ews-listener/config.toml", text)
        machine.run("systemctl", "start", "ews-listener")

Nothing that happens in it reaches the real file system: its root is an overlay whose upper layer lies in memory and
goes with the machine. The network is the real one, so what listens on 127.0.0.1 outside is reached from inside.
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
    """Why no machine can be booted here; empty if one can."""
    if os.geteuid() != 0:
        return "a systemd of our own needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or SYSTEMD}"
    if _cgroups() is None:
        return "no cgroup2 file system that we may write to"
    try_overlay = (
        "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work /mnt/root && "
        "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root"
    )
    namespaces = ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup"]
    tried = subprocess.run([*namespaces, "sh", "-c", try_overlay], capture_output=True, text=True)
    return f"no namespaces or overlays here: {tried.stderr.strip()}" if tried.returncode else ""


def _cgroups() -> Path | None:
    """Our own place in the tree of cgroup2."""
    places = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = [before.split()[4] for before, after in places if after.startswith("cgroup2 ")]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not mounts or not own:
        return None
    place = Path(mounts[0] + own[0])
    return place if os.access(place, os.W_OK) else None


@dataclass(frozen=True)
class Machine:
    """A booted machine; `pid` is that of its systemd, seen from outside."""

    pid: int

    @classmethod
    @contextmanager
    def boot(cls, folder: Path, binds: Mapping[Path, str]) -> Iterator[Machine]:
        """Boots and, in the end, kills it. `folder` is empty and stays so, but for the console's log.

        `binds`: what is to be seen inside, read-only, and where.
        """
        here = _cgroups()
        assert here is not None
        before = os.umask(0o022)  # as on any machine: others read units and directories
        group = here / f"ews-listener-test-{os.getpid()}-{folder.name}"
        group.mkdir()
        where = folder / "machine"
        where.mkdir()
        console = folder / "console.log"
        # However these tests end, the machine ends with them.
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
                    where,
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
        # Before it has moved to its own root, it would be the real one's systemd that answers.
        here = Path(f"/proc/{self.pid}/comm").read_text().strip() == "systemd"
        return here and self.output_of("systemctl", "is-system-running").strip() in ("running", "degraded")

    def path(self, inside: str) -> Path:
        """A file of the machine, seen from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(self, *command: str, timeout: float = 60.0) -> str:
        """Its standard output. AssertionError if it fails."""
        done = self._run(command, timeout)
        assert done.returncode == 0, (
            f"{command} gave {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout

    def output_of(self, *command: str, timeout: float = 60.0) -> str:
        """Its standard output, however it ends."""
        return self._run(command, timeout).stdout

    def run_failing(self, *command: str, timeout: float = 60.0) -> str:
        """What it says. AssertionError if it does not fail."""
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
    """The child of `unshare`, which becomes systemd."""
    assert outer.poll() is None, "the machine did not boot"
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    return int(children[0]) if children else None


def _removed(group: Path) -> bool:
    """Removes a cgroup and those in it, as soon as their processes are gone."""
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)
    except OSError:
        return False
    return True
