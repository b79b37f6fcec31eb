"""A pytest plugin that searches all output of tests for secrets. tests/conftest.py loads it.

`plant(secret)` registers a text that must not appear in what a test prints or logs, in the output of a process that
it started, or in the files that a test in tests/system creates, including the state directory. Access tokens must not
appear either. Exempt are files that contain secrets on purpose, and the simulator, which prints its password.
"""

import re
import subprocess
from base64 import b64encode
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from listener.simulator.settings import Settings

# Configurations, passwords, certificates.
SECRET_FILES = frozenset({".toml", ".txt", ".pem", ".key", ".pfx", ".keytab"})
_TOKEN = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.")
_planted: set[bytes] = set()
_found: list[str] = []
_communicate = subprocess.Popen.communicate


def plant(*secrets: str) -> None:
    """Register texts that must not appear from now on."""
    for secret in secrets:
        _planted.add(secret.encode())
        # As in a Basic authentication header: base64, at any of three offsets, which depend on the user's length.
        for shift in range(3):
            coded = b64encode(b"x" * shift + secret.encode())
            _planted.add(coded[(0, 2, 3)[shift] : len(coded) // 4 * 4 - 4])


def leaks(output: bytes | str) -> list[str]:
    """Return, for each secret in the output, the 80 characters before it."""
    data = output.encode("utf-8", "replace") if isinstance(output, str) else output
    offsets = [data.find(secret) for secret in _planted]
    offsets += [token.start() for token in _TOKEN.finditer(data)]
    return [data[max(0, at - 80) : at].decode("utf-8", "replace") for at in offsets if at >= 0]


def _communicate_and_search(process: "subprocess.Popen[Any]", *arguments: Any, **options: Any) -> Any:
    outputs = _communicate(process, *arguments, **options)
    command = process.args if isinstance(process.args, list) else [process.args]
    if "simulate" not in command:
        for output in filter(None, outputs):
            _found.extend(f"{command}: …{before}" for before in leaks(output))
    return outputs


def pytest_configure() -> None:
    plant(Settings().password, Settings().client_secret)
    subprocess.Popen.communicate = _communicate_and_search  # type: ignore[method-assign, assignment]


def pytest_unconfigure() -> None:
    subprocess.Popen.communicate = _communicate  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: object
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown":
        found = [f"{name}: …{before}" for name, text in report.sections for before in leaks(text)]
        found += _leaks_in_files(item)
        if found := found + _found:
            report.outcome = "failed"
            report.longrepr = "a secret appears in\n" + "\n".join(found)
        _found.clear()
    return report


def _leaks_in_files(item: pytest.Item) -> Iterator[str]:
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if not isinstance(folder, Path) or "system" not in item.path.parts:
        return
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in SECRET_FILES:
            yield from (f"{path.name}: …{before}" for before in leaks(path.read_bytes()))
