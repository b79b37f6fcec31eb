"""Watches everything that tests bring forth for secrets: a pytest plugin, which tests/conftest.py brings in.

`plant(secret)` makes a text one that must not appear: not in what a test prints or logs, nor in what a process that
it started prints, nor in the files that a test in tests/system leaves behind, the state directory among them. What
looks like an access token must not appear either. Left out are those files that secrets are kept in on purpose, and
the simulator, which tells its password to whoever starts it.
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
KEEPERS = frozenset({".toml", ".txt", ".pem", ".key", ".pfx", ".keytab"})
_TOKEN = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.")
_planted: set[bytes] = set()
_found: list[str] = []
_communicate = subprocess.Popen.communicate


def plant(*secrets: str) -> None:
    """From now on, these must not appear."""
    for secret in secrets:
        _planted.add(secret.encode())
        # As it stands in a header of Basic, behind a name and a colon: in base64, at any of three places.
        for shift in range(3):
            coded = b64encode(b"x" * shift + secret.encode())
            _planted.add(coded[(0, 2, 3)[shift] : len(coded) // 4 * 4 - 4])


def leaks(output: bytes | str) -> list[str]:
    """What of the output is secret, with what stands before it."""
    data = output.encode("utf-8", "replace") if isinstance(output, str) else output
    places = [data.find(secret) for secret in _planted]
    places += [token.start() for token in _TOKEN.finditer(data)]
    return [data[max(0, place - 80) : place].decode("utf-8", "replace") for place in places if place >= 0]


def _watched(process: "subprocess.Popen[Any]", *arguments: Any, **options: Any) -> Any:
    outputs = _communicate(process, *arguments, **options)
    command = process.args if isinstance(process.args, list) else [process.args]
    if "simulate" not in command:
        for output in filter(None, outputs):
            _found.extend(f"{command}: …{before}" for before in leaks(output))
    return outputs


def pytest_configure() -> None:
    plant(Settings().password, Settings().client_secret)
    subprocess.Popen.communicate = _watched  # type: ignore[method-assign, assignment]


def pytest_unconfigure() -> None:
    subprocess.Popen.communicate = _communicate  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: object
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown":
        told = [f"{name}: …{before}" for name, text in report.sections for before in leaks(text)]
        told += _left_behind(item)
        if told := told + _found:
            report.outcome = "failed"
            report.longrepr = "a secret appears in\n" + "\n".join(told)
        _found.clear()
    return report


def _left_behind(item: pytest.Item) -> Iterator[str]:
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if not isinstance(folder, Path) or "system" not in item.path.parts:
        return
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in KEEPERS:
            yield from (f"{path.name}: …{before}" for before in leaks(path.read_bytes()))
