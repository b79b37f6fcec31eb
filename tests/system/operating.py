"""Run operator commands as processes and query the status server."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.system import forked
from tests.system.processes import Simulator


def command(simulator: Simulator, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `ews-listener WORDS --config …`."""
    return forked.run(
        [sys.executable, "-m", "listener", *words, "--config", str(simulator.config)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "COLUMNS": "180"},
    )


def status(simulator: Simulator) -> dict[str, Any]:
    """Return the parsed output of `status --json`."""
    answer: dict[str, Any] = json.loads(command(simulator, "status", "--json").stdout)
    return answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return str(answer.read().decode())


def socket_of(simulator: Simulator) -> Path:
    return simulator.folder / "state" / "ews-listener.sock"
