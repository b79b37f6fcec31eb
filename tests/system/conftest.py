"""Real processes for the tests that need them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def simulate() -> Iterator[Callable[..., tuple["subprocess.Popen[str]", dict[str, Any]]]]:
    """Starts `ews-listener simulate` with these options; gives the process and what its first line says."""
    processes = []

    def start(*options: str) -> tuple["subprocess.Popen[str]", dict[str, Any]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "listener", "simulate", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.communicate(timeout=10)[1])
        return process, json.loads(line)

    yield start
    for process in processes:
        with process:
            process.kill()
