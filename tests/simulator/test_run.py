import socket
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from listener.cli import app
from listener.simulator.run import configuration
from listener.simulator.server import Running
from listener.simulator.settings import Settings
from tests.simulator.client import Client


def running_with(password: str) -> Running:
    client = Client()
    return Running(
        ews_url="http://127.0.0.1:1/EWS/Exchange.asmx",
        autodiscover_url="http://127.0.0.1:1/autodiscover/autodiscover.svc",
        control_url="http://127.0.0.1:1/control",
        login_url=None,
        user="svc-listener@contoso.example",
        password=password,
        ca_pem=None,
        exchange=client.exchange,
        traffic=None,  # type: ignore[arg-type]
        control=None,  # type: ignore[arg-type]
    )


def test_a_configuration_for_the_listener() -> None:
    text = configuration(running_with("secret"), Settings(heartbeat=1.5), tls=True)
    assert tomllib.loads(text) == {
        "state_directory": "state",
        "exchange": {
            "ews_url": "http://127.0.0.1:1/EWS/Exchange.asmx",
            "autodiscover_url": "http://127.0.0.1:1/autodiscover/autodiscover.svc",
            "ca_file": "ca.pem",
        },
        "auth": {"kind": "basic", "user": "svc-listener@contoso.example", "password": "secret"},
        "mailboxes": {"file": "mailboxes.txt"},
        "stream": {"heartbeat": 1.5},
        "handlers": {"deliveries": {"use": "file", "path": "deliveries.jsonl"}},
    }


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_password_survives_the_configuration(password: str) -> None:
    text = configuration(running_with(password), Settings(), tls=False)
    assert tomllib.loads(text)["auth"]["password"] == password


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["simulate", "--port", str(port)])
    assert result.exit_code == 1
    assert "cannot run the simulator: " in result.output


def test_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", "--ledger", str(tmp_path)])
    assert result.exit_code == 1
    assert "cannot run the simulator: " in result.output


@pytest.mark.parametrize("option", [["--port", "-1"], ["--rate", "-1"], ["--backends", "0"]])
def test_options_out_of_range(option: list[str]) -> None:
    assert CliRunner().invoke(app, ["simulate", *option]).exit_code == 2


def test_what_is_for_the_demo_alone_stays_out_of_the_help() -> None:
    result = CliRunner().invoke(app, ["simulate", "--help"])
    assert result.exit_code == 0
    assert "duration" in result.output
    assert "stdin" not in result.output


def test_a_keytab_that_is_none(tmp_path: Path) -> None:
    keytab = tmp_path / "empty.keytab"
    keytab.touch()
    result = CliRunner().invoke(app, ["simulate", "--auth", "negotiate", "--keytab", str(keytab)])
    assert result.exit_code == 1
    assert "cannot run the simulator: " in result.output
    result = CliRunner().invoke(app, ["simulate", "--keytab", str(keytab)])
    assert result.exit_code == 2
    assert "--keytab requires --auth negotiate" in result.output
