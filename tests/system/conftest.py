"""Fixtures that start the simulator, the daemon and a recording proxy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import plant
from tests.system import forked
from tests.system.processes import Listener, Recorder, Simulator, start_listener


@pytest.fixture
def simulate() -> Iterator[Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]]:
    """Start `ews-listener simulate` with these options; return the process and its parsed first line."""
    processes = []

    def start(*options: str, **environment: str) -> tuple["subprocess.Popen[str]", dict[str, Any]]:
        process = forked.Popen(
            [sys.executable, "-m", "listener", "simulate", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.communicate(timeout=10)[1])
        info = json.loads(line)
        plant(info["password"], *filter(None, [(info.get("oauth") or {}).get("client_secret")]))
        return process, info

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def simulator(
    simulate: Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]], tmp_path: Path
) -> Callable[..., Simulator]:
    """Start a simulator that writes a configuration; four mailboxes and no traffic unless the options differ."""

    def start(*options: str, **environment: str) -> Simulator:
        config = tmp_path / "listener.toml"
        common = ("--rate", "0", "--mailboxes", "4", "--write-config", str(config))
        process, info = simulate(*common, *options, **environment)
        return Simulator(process, info, config)

    return start


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Start `ews-listener run` with the simulator's configuration."""
    listeners = []

    def start(simulator: Simulator, **environment: str) -> Listener:
        listeners.append(start_listener(simulator.config, environment))
        return listeners[-1]

    yield start
    for listener in listeners:
        with listener.process as process:
            process.kill()


@pytest.fixture
def plugins() -> str:
    """Return the folder of the module `acme`, for PYTHONPATH."""
    return str(Path(__file__).parent / "plugins")


@pytest.fixture
def record() -> Iterator[Callable[[Simulator], Recorder]]:
    """Start a recording proxy in front of the simulator."""
    recorders = []

    def start(simulator: Simulator) -> Recorder:
        recorders.append(Recorder(simulator.port))
        return recorders[-1]

    yield start
    for recorder in recorders:
        recorder.close()
