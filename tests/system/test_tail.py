"""`ews-listener tail` as a process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system import forked
from tests.system.processes import Listener, Simulator, until

TAIL = [sys.executable, "-m", "listener", "tail"]
LINE = '{"time":"2026-03-01T12:00:00.123Z","level":"info","event":"%s","group":"g/1"}\n'


def tail(*options: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return forked.run(
        [*TAIL, *options],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_the_log_of_a_daemon(simulator: Callable[..., Simulator], listen: Callable[..., Listener]) -> None:
    exchange = simulator()
    daemon = listen(exchange)
    exchange.until_streaming(4)
    assert daemon.stop() == 0
    log = daemon.log_file.read_text()
    everything = tail(stdin=log)
    assert everything.returncode == 0
    assert len(everything.stdout.splitlines()) == len(log.splitlines())
    filtered = tail(str(daemon.log_file), "--event", "group.*", "--level", "info", "--since", "1h")
    lines = filtered.stdout.splitlines()
    assert lines
    assert all("  group." in line for line in lines)


def test_bad_lines_and_empty_input() -> None:
    assert tail(stdin="").stdout == ""
    done = tail(stdin=LINE % "group.started" + "Killed\n\x1b[2J\nnot the end")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == ["Killed", "\\x1b[2J", "not the end"]


def test_force_color_enables_colors() -> None:
    assert "\x1b[" in tail(stdin=LINE % "group.started", FORCE_COLOR="1").stdout
    assert "\x1b[" not in tail(stdin=LINE % "group.started").stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["missing.jsonl"], 1, "missing.jsonl: No such file"),
        (["--level", "loud"], 2, "--level"),
        (["--since", "yesterday"], 2, "--since"),
    ],
)
def test_errors_are_reported(options: list[str], code: int, message: str) -> None:
    done = tail(*options, stdin="")
    assert done.returncode == code
    assert message in done.stderr


def test_follow_continues_with_a_replaced_file(tmp_path: Path) -> None:
    path, out = tmp_path / "log.jsonl", tmp_path / "out"
    path.write_text(LINE % "group.one")
    with out.open("w") as file, forked.Popen([*TAIL, "-f", str(path)], stdout=file) as process:
        try:
            until(lambda: "group.one" in out.read_text(), "the first line")
            with path.open("a") as log:
                log.write((LINE % "group.two")[:20])
                log.flush()
                time.sleep(0.3)
                log.write((LINE % "group.two")[20:])
            until(lambda: "group.two" in out.read_text(), "a line that was written in two pieces")
            path.rename(tmp_path / "log.1")
            path.write_text(LINE % "group.three")
            until(lambda: "group.three" in out.read_text(), "the new file")
        finally:
            process.terminate()
    assert len(out.read_text().splitlines()) == 3


def test_a_closed_output_pipe_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(LINE % "group.started" * 20_000)
    command = " ".join([*TAIL, str(path), "| head -n 1"])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_the_systemd_journal_is_read_by_journalctl(tmp_path: Path) -> None:
    """`tail` reads the journal if standard input is a terminal. A script replaces journalctl."""
    import pty

    entry = {
        "__REALTIME_TIMESTAMP": "1772366400123000",
        "PRIORITY": "4",
        "MESSAGE": "…",
        "EWS_EVENT": "stream.silent",
    }
    script = tmp_path / "journalctl"
    script.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/arguments\necho '{json.dumps(entry)}'\n")
    script.chmod(0o755)
    main, terminal = pty.openpty()
    done = forked.run(
        [*TAIL, "--since", "2026-01-01"],
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    os.close(main)
    os.close(terminal)
    assert "stream.silent" in done.stdout
    arguments = (tmp_path / "arguments").read_text()
    assert "--output=json" in arguments
    assert "--identifier=ews-listener --since=@" in arguments
