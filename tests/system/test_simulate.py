"""`ews-listener simulate` as a process."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system import forked

Start = Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_simulator_cleanly(simulate: Start, number: signal.Signals) -> None:
    process, info = simulate("--rate", "0")
    assert sorted(info) == [
        "auth", "autodiscover_url", "ca_file", "control_url", "ews_url", "mailboxes_file", "oauth", "password",
        "user",
    ]  # fmt: skip
    assert (info["auth"], info["oauth"]) == ("basic", None)
    assert info["ca_file"] is None
    assert info["mailboxes_file"] is None
    process.send_signal(number)
    assert process.wait(10) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_until_stdin_closes_stops_the_simulator() -> None:
    with forked.Popen(
        [sys.executable, "-m", "listener", "simulate", "--rate", "0", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            assert "ews_url" in process.stdout.readline()
            process.stdin.write("any input\n")
            process.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.stdin.close()
            assert process.wait(10) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_duration_stops_the_simulator_and_its_files_remain(simulate: Start, tmp_path: Path) -> None:
    config = tmp_path / "listener.toml"
    ledger = tmp_path / "ledger.jsonl"
    process, info = simulate(
        "--tls", "--rate", "200", "--mailboxes", "7", "--duration", "0.5",
        "--write-config", str(config), "--ledger", str(ledger),
    )  # fmt: skip
    assert process.wait(10) == 0
    assert info["ews_url"].startswith("https://")
    assert info["mailboxes_file"] == str(tmp_path / "mailboxes.txt")
    assert len((tmp_path / "mailboxes.txt").read_text().split()) == 7
    assert info["ca_file"] == str(tmp_path / "ca.pem")
    assert "BEGIN CERTIFICATE" in (tmp_path / "ca.pem").read_text()
    assert info["ews_url"] in config.read_text()
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) > 20


def test_the_same_seed_creates_the_same_organization(simulate: Start) -> None:
    passwords = [simulate("--rate", "0", "--seed", seed)[1]["password"] for seed in ("5", "5", "6")]
    assert passwords[0] == passwords[1] != passwords[2]


def test_the_control_api(simulate: Start, tmp_path: Path) -> None:
    _, info = simulate("--rate", "0", "--write-config", str(tmp_path / "listener.toml"))
    address = (tmp_path / "mailboxes.txt").read_text().split()[0]
    body = json.dumps({"mailbox": address, "kind": "MovedEvent", "count": 3}).encode()
    with urllib.request.urlopen(f"{info['control_url']}/events", body, timeout=10) as reply:
        assert sum(line["kind"] == "MovedEvent" for line in json.load(reply)["events"]) == 3
    with urllib.request.urlopen(f"{info['control_url']}/state", timeout=10) as reply:
        assert json.load(reply)["queued"] == 0


def test_importing_the_command_loads_no_heavy_dependency() -> None:
    code = (
        "import sys, listener.cli.simulate; "
        "print([name for name in ('trio', 'lxml', 'h11', 'trustme') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
