"""`ews-listener reload` when the daemon takes longer than the timeout of the command."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from listener.cli import app, daemon_client


def test_timeout_reports_that_the_reload_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_client, "RELOAD_TIMEOUT", 0.1)
    config = tmp_path / "config.toml"
    config.write_text('state_directory = "there"\n')
    (tmp_path / "there").mkdir()
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "there" / "ews-listener.sock"))
        daemon.listen()  # and never responds
        result = CliRunner().invoke(app, ["reload", "-c", str(config)])
    assert result.exit_code == 1
    assert result.output == (
        "error: the reload did not finish within 0.1 s; it continues in the daemon; run ews-listener status to see "
        "the result\n"
    )
