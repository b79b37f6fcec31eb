"""`ews-listener demo` as a process."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.system import forked
from tests.system.processes import TIMEOUT, json_lines, until

KEYS = [
    "mailboxes", "streaming", "groups", "generated", "delivered", "duplicates", "lost", "unseen", "faults", "p50_ms",
    "p99_ms",
]  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return an environment that marks all processes of a demo. Check that no process or file of it remains."""
    mark, temporary = uuid4().hex, tmp_path / "tmp"
    temporary.mkdir()
    yield os.environ | {
        "EWS_LISTENER_TEST": mark,
        "TMPDIR": str(temporary),
        "TERM": "xterm",
        "COLUMNS": "120",
    }
    assert marked(mark) == []
    assert list(temporary.iterdir()) == []


def marked(mark: str) -> list[str]:
    """Return the command lines of all processes with this mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # the process has ended or belongs to another user
    return [command for command in found if command]  # zombies have no command line


def demo(*options: str) -> list[str]:
    return [sys.executable, "-m", "listener", "demo", *options]


@pytest.mark.parametrize("auth", ["basic", "ntlm", "negotiate", "oauth"])
def test_summary_reports_no_lost_event(environment: dict[str, str], auth: str) -> None:
    command = demo("--mailboxes", "40", "--rate", "100", "--duration", "3", "--auth", auth, "--json")
    run = forked.run(
        command, env=environment, capture_output=True, text=True, timeout=3 + TIMEOUT, check=False
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    summary = json.loads(line)
    assert list(summary) == KEYS
    assert (summary["mailboxes"], summary["streaming"]) == (40, 40)
    assert 1 <= summary["groups"] <= 40
    assert summary["generated"] == summary["delivered"] >= 200
    assert (summary["duplicates"], summary["lost"], summary["faults"]) == (0, 0, 0)
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]
    log = [json.loads(line) for line in run.stderr.splitlines()]
    assert {"listener.started", "group.streaming", "listener.stopped"} <= {line["event"] for line in log}
    assert not [line for line in log if line["level"] in ("warning", "error")]


def test_no_event_is_lost_with_faults(environment: dict[str, str]) -> None:
    options = (
        "--mailboxes",
        "40",
        "--rate",
        "100",
        "--duration",
        "8",
        "--faults",
        "heavy",
        "--seed",
        "3",
        "--json",
    )
    run = forked.run(
        demo(*options), env=environment, capture_output=True, text=True, timeout=8 + 2 * TIMEOUT, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    summary = json.loads(run.stdout)
    assert list(summary) == KEYS
    assert summary["faults"] > 3
    assert (summary["lost"], summary["mailboxes"]) == (0, 40)
    assert summary["generated"] >= 400


def test_interrupt_prints_the_summary(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with log.open("wb") as errors:
        process = forked.Popen(
            demo("--mailboxes", "10", "--rate", "200"),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        until(lambda: any(line["event"] == "group.streaming" for line in json_lines(log)), "a stream")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the foreground process group
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    summary = dict(re.findall(r"^(\w+) +([\d,.-]+) *$", output, re.MULTILINE))
    assert list(summary) == KEYS
    assert (summary["mailboxes"], summary["lost"], summary["duplicates"]) == ("10", "0", "0")
    assert output.splitlines()[-1].strip() == "No event was lost."


def test_killed_demo_leaves_no_simulator(environment: dict[str, str], tmp_path: Path) -> None:
    def running() -> list[str]:
        return marked(environment["EWS_LISTENER_TEST"])

    with forked.Popen(
        demo("--mailboxes", "5"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: any("simulate" in command for command in running()), "a simulator")
        finally:
            process.kill()
    until(lambda: not running(), "the end of the simulator")
    shutil.rmtree(tmp_path / "tmp")  # the killed demo could not remove its directory
    (tmp_path / "tmp").mkdir()


def test_terminal_view_until_control_c(environment: dict[str, str]) -> None:
    master, slave = pty.openpty()
    process = forked.Popen(
        demo("--mailboxes", "12", "--rate", "100"), env=environment, preexec_fn=lambda: os.login_tty(slave)
    )
    os.close(slave)
    screen = ""
    try:
        deadline = time.monotonic() + TIMEOUT
        while not ("12/12" in screen and "exchange.item." in screen):
            assert time.monotonic() < deadline, screen
            screen = read_screen(master, screen)
        os.write(master, b"\x03")
        while process.poll() is None:
            assert time.monotonic() < deadline + TIMEOUT, screen
            screen = read_screen(master, screen)
        screen = read_screen(master, screen)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert process.returncode == 0
    for shown in (
        "ews-listener demo",
        "mailboxes streaming",
        "anchor",
        "latest events",
        "Press Ctrl-C to stop",
    ):
        assert shown in screen
    assert "No event was lost." in screen[-200:]
    assert "Traceback" not in screen
    assert '"event"' not in screen  # log lines must not disturb the display


def read_screen(master: int, screen: str) -> str:
    """Return `screen` plus new terminal output, without colors and cursor movements."""
    if not select.select([master], [], [], 0.05)[0]:
        return screen
    try:
        data = os.read(master, 1 << 16)
    except OSError:  # all processes have closed the terminal
        return screen
    return screen + re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
