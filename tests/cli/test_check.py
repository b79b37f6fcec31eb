import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from listener.cli.check import check

APP = typer.Typer()
APP.command()(check)
SECRET = "pl4nted-s3cret"
GOOD = f"""
[auth]
user = "svc@example.com"
password = "{SECRET}"
[mailboxes]
addresses = ["alice@example.com", "bob@example.com"]
[[groups]]
ews_url = "https://mail.example.com/EWS/Exchange.asmx"
mailboxes = ["carol@example.com"]
[handlers.all]
use = "listener.handlers.log:open_log"
[handlers.new]
use = "listener.handlers.exec:open_exec"
command = ["true"]
filter.types = ["new_mail", "created"]
"""
BAD = GOOD.replace("bob@", "Alice@").replace("command", "comand").replace("user =", "usr =")
WRONG = [
    ("auth.usr", 'unknown key, did you mean "user"?'),
    ("auth.user", "is required"),
    ("mailboxes.addresses[1]", '"alice@example.com" is a duplicate of mailboxes.addresses[0]'),
    ("handlers.new.comand", 'unknown option of "listener.handlers.exec:open_exec", did you mean "command"?'),
    ("handlers.new.command", 'is required by "listener.handlers.exec:open_exec"'),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def run(*arguments: object, env: dict[str, str] | None = None) -> Any:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], env=env)
    assert SECRET not in result.output
    return result


def test_valid_configuration_is_summarized(config: Path) -> None:
    config.write_text(GOOD)
    result = run("--config", config)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{config} is valid.",
        "mailboxes: 3, 1 of them in 1 static group(s)",
        "handler all (listener.handlers.log:open_log): all changes",
        "handler new (listener.handlers.exec:open_exec): types new_mail, created",
    ]


def test_each_problem_is_one_line_on_standard_error(config: Path) -> None:
    config.write_text(BAD)
    result = run("-c", config)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [f"error: {where}: {what}" for where, what in WRONG]


def test_json_of_valid_configuration(config: Path) -> None:
    config.write_text(GOOD)
    result = run("--config", config, "--json")
    assert result.exit_code == 0
    every = {"mailboxes": ["*"], "types": ["exchange.item.*", "exchange.folder.*"], "folders": ["*"]}
    assert json.loads(result.stdout) == {
        "ok": True,
        "problems": [],
        "mailboxes": 3,
        "static_groups": 1,
        "handlers": [
            {"name": "all", "use": "listener.handlers.log:open_log", "filter": every},
            {
                "name": "new",
                "use": "listener.handlers.exec:open_exec",
                "filter": every | {"types": ["new_mail", "created"]},
            },
        ],
    }


def test_json_of_invalid_configuration(config: Path) -> None:
    config.write_text(BAD)
    result = run("--config", config, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "ok": False,
        "problems": [{"where": where, "what": what} for where, what in WRONG],
        "mailboxes": None,
        "static_groups": None,
        "handlers": [],
    }


def test_default_path_and_environment_variable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    assert run().stderr == "error: config.toml: cannot be read: No such file or directory\n"
    config.write_text(GOOD)
    assert run().stdout.startswith("config.toml is valid.\n")
    result = run(env={"EWS_LISTENER_CONFIG": "other.toml"})
    assert result.stderr == "error: other.toml: cannot be read: No such file or directory\n"


def test_module_imports_no_heavy_packages() -> None:
    text = "import sys, listener.cli.check; print(*{'pydantic', 'trio', 'structlog', 'lxml'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert found.stdout == "\n"


def test_summary_counts_distribution_groups(config: Path) -> None:
    address = 'addresses = ["alice@example.com", "bob@example.com"]'
    assert address in GOOD
    url = '[exchange]\news_url = "https://mail.example.com/EWS/Exchange.asmx"\n'
    config.write_text(url + GOOD.replace(address, 'distribution_groups = ["all@example.com"]'))
    result = run("--config", config)
    assert result.exit_code == 0
    assert (
        "mailboxes: 1, 1 of them in 1 static group(s), and the members of 1 distribution group(s)"
        in result.stdout
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mailbox", "a@b.c"], "requires --connect"),
        (["--connect", "--mailbox", "anna"], "security identifier"),
    ],
)
def test_invalid_mailbox_option(config: Path, options: list[str], message: str) -> None:
    config.write_text(GOOD)
    result = run("--config", config, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
