"""`ews-listener reload` where the daemon takes longer than the command waits."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from listener.cli import app, daemon_client


def test_who_has_waited_long_enough_is_told_that_the_reload_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_client, "RELOADING", 0.1)
    config = tmp_path / "config.toml"
    config.write_text('state_directory = "there"\n')
    (tmp_path / "there").mkdir()
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "there" / "ews-listener.sock"))
        daemon.listen()  # and never an answer
        result = CliRunner().invoke(app, ["reload", "-c", str(config)])
    assert result.exit_code == 1
    assert result.output == (
        "error: not done within 0.1 s; the reload goes on, and ews-listener status tells what comes of it\n"
    )
