"""Help, version and import time of the command line."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from listener import __version__
from listener.cli import app

COMMANDS = ("run", "check", "demo", "simulate")
HEAVY = ("trio", "httpx", "h11", "lxml", "pydantic", "structlog", "trustme", "rich")


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner(env={"TERM": "dumb", "COLUMNS": "120"}).invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_help_names_every_command() -> None:
    status, output, _ = invoke("--help")
    assert status == 0
    for command in COMMANDS:
        assert f" {command} " in output


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("run", ["--config"]),
        ("check", ["--config", "--json"]),
        ("demo", ["--mailboxes", "--rate", "--seed", "--duration", "--json"]),
        (
            "simulate",
            [
                "--port", "--mailboxes", "--backends", "--rate", "--seed", "--ledger", "--tls", "--heartbeat",
                "--duration", "--write-config",
            ],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_command_lists_its_options(command: str, options: list[str], flag: str) -> None:
    status, output, _ = invoke(command, flag)
    assert status == 0
    for option in options:
        assert f"{option} " in output


def test_no_command_prints_usage() -> None:
    status, output, errors = invoke()
    assert status == 2
    assert "Usage" in output + errors


def test_version() -> None:
    assert invoke("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["listen"],
        ["run", "--colour"],
        ["demo", "--mailboxes", "0"],
        ["demo", "--rate", "-1"],
        ["demo", "--duration", "soon"],
        ["simulate", "--port", "70000"],
        ["simulate", "--backends", "0"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_code_2(arguments: list[str]) -> None:
    status, _, errors = invoke(*arguments)
    assert status == 2
    assert "Error" in errors


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import listener", set()),
        ("import listener.cli", set()),
        ("from listener.cli import app; app(['--version'], standalone_mode=False)", set()),
        (
            "from listener.cli import app; app(['run', '--help'], standalone_mode=False)",
            {"rich", "pydantic"},
        ),  # typer imports these itself
    ],
    ids=["plugin API", "cli", "--version", "--help"],
)
def test_heavy_packages_are_imported_only_when_needed(code: str, allowed: set[str]) -> None:
    script = (
        f"import sys, json\n{code}\nprint()\nprint(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert set(json.loads(run.stdout.splitlines()[-1])) <= allowed


def test_module_can_be_run_and_prints_its_version() -> None:
    command = [sys.executable, "-m", "listener", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout == f"{__version__}\n"
    assert version("ews-listener") == __version__
